# SPDX-License-Identifier: Apache-2.0
"""The core as a C++ library: installed, found by another CMake project, and run without Python."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_metal import _core
from vllm_metal.default_model import ensure_default_model

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("VLLM_METAL_BUILD_DIR", ROOT / "build" / "release"))
# The one of the environment first: a system without CMake can run this too.
CMAKE = shutil.which(
    "cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
)
PROMPT = [1, 9690, 198, 2683, 359, 253, 5356, 11173]


def run(*command: object, cwd: Path | None = None) -> str:
    result = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example program, built against the installed package."""
    if not (BUILD / "CMakeCache.txt").exists():
        pytest.skip(f"{BUILD} is not a build directory")
    folder = tmp_path_factory.mktemp("cxx_package")
    mlx_root = importlib.util.find_spec("mlx").submodule_search_locations[0]
    run(CMAKE, "--install", BUILD, "--component", "cxx", "--prefix", folder / "prefix")
    run(
        CMAKE,
        "-S",
        ROOT / "examples",
        "-B",
        folder / "build",
        f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}",
        f"-DMLX_ROOT={mlx_root}",
    )
    run(CMAKE, "--build", folder / "build")
    return folder / "build" / "generate"


@pytest.mark.slow
def test_example_generates_what_the_extension_generates(generate: Path):
    model = Path(ensure_default_model())
    printed = run(generate, model, "--max-tokens", "8", "--dtype", "float32", *PROMPT)

    runner = _core.ModelRunner(str(model), (model / "config.json").read_text(), "float32")
    runner.initialize_kv_cache(64, 16)
    expected: list[int] = []
    new = [("r", PROMPT, 0, _core.SamplingParams(temperature=0.0))]
    for i in range(8):
        scheduled = [("r", 0, len(PROMPT)) if i == 0 else ("r", len(PROMPT) + i - 1, 1)]
        output = runner.step(
            finished=[], preempted=[], new_requests=new, updates=[], scheduled=scheduled
        )
        expected += output.token_ids[0]
        new = []
    assert [int(word) for word in printed.split()] == expected


@pytest.mark.slow
def test_example_names_its_mistakes(generate: Path, tmp_path: Path):
    for arguments, message in (
        ([tmp_path, "1"], "config.json"),
        ([tmp_path], "usage:"),
        ([tmp_path, "one"], "'one'"),
        ([tmp_path, "--dtype", "int4", "1"], "float32, float16, bfloat16"),
    ):
        (tmp_path / "config.json").unlink(missing_ok=True)
        if "--dtype" in arguments:
            (tmp_path / "config.json").write_text("{}")
        result = subprocess.run([generate, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert message in result.stderr
