# SPDX-License-Identifier: Apache-2.0
"""The layer check finds what it is there to find."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "check_layers", Path(__file__).with_name("check_layers.py")
)
assert SPEC is not None
assert SPEC.loader is not None
check_layers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_layers)


@pytest.fixture
def tree(tmp_path):
    """Function that writes files into an otherwise correct tree and returns what is wrong."""

    def check(files: dict[str, str]) -> list[str]:
        base = {
            "src/common/log.h": "#pragma once\n",
            "src/platform/device.h": '#include "common/log.h"\n',
            "src/models/llama.cpp": '#include "platform/device.h"\n',
        }
        for name, text in {**base, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return check_layers.check(tmp_path)

    return check


def test_a_correct_tree_passes(tree):
    assert tree({"python/bindings/module.cpp": '#include "models/llama.cpp"\n'}) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("src/common/bad.cpp", '#include "platform/device.h"', "common may not include"),
        ("src/kernels/a.cpp", '#include "weights/w.h"', "kernels may not include"),
        ("src/weights/a.cpp", '  #  include "kernels/k.h"', "weights may not include"),
        ("src/sampling/a.cpp", '#include "models/llama.cpp"', "sampling may not include"),
        ("src/odd/a.cpp", "", "folder odd has no place"),
        ("src/models/a.cpp", '#include "models/missing.h"', "is no file of src/"),
        ("src/models/a.cpp", 'auto x = std::getenv("HOME");', "getenv"),
        ("src/models/a.cpp", "auto f = mx::compile(g);", "mx::compile"),
        ("src/models/a.cpp", "#include <mlx/compile.h>", "mx::compile"),
        ("src/models/a.cpp", "auto t = std::chrono::system_clock::now();", "the wall clock jumps"),
        ("src/models/a.h", "namespace a {\n  using namespace b;\n}", "using namespace"),
        ("src/models/a.h", "#if defined(__APPLE__)\n#endif", "depends on the device"),
    ],
)
def test_what_breaks_the_flow_is_named(tree, name, text, expected):
    neighbours = {"src/weights/w.h": "", "src/kernels/k.h": ""}
    errors = tree({**neighbours, name: text + "\n"})
    assert len(errors) == 1
    assert errors[0].startswith(name.removeprefix("src/"))
    assert expected in errors[0]


def test_include_cycles_are_shown_as_a_path(tree):
    files = {"src/files/a.h": '#include "files/b.h"\n', "src/files/b.h": '#include "files/a.h"\n'}
    assert tree(files) == ["include cycle: files/a.h -> files/b.h -> files/a.h"]


def test_comments_and_config_env_may_speak_of_getenv(tree):
    files = {
        "src/config/env.cpp": 'const char* x = std::getenv("A");\n',
        "src/models/a.cpp": "// never getenv()\n",
    }
    assert tree(files) == []


def test_the_repository_itself_follows_the_flow():
    assert check_layers.check(check_layers.ROOT) == []
