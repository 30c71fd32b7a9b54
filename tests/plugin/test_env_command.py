# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
from vllm_metal import envs
from vllm_metal.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in envs.NAMES:
        monkeypatch.delenv(name, raising=False)


def test_all_ten_are_listed(capsys):
    assert main(["env"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["variable", "value", "default", "set", "meaning"]
    assert tuple(row.split()[0] for row in rows) == envs.NAMES
    assert len(rows) == 10


def test_what_is_set_shows(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_MEMORY_FRACTION", "0.25")
    assert main(["env", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    fraction = rows["VLLM_METAL_MEMORY_FRACTION"]
    assert (fraction["value"], fraction["default"], fraction["is_set"]) == ("0.25", "auto", True)
    assert not rows["VLLM_METAL_DEBUG"]["is_set"]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("VLLM_METAL_MEMORY_FRACTION", "1.5", "auto or a number in (0, 1]"),
        ("VLLM_METAL_USE_MLX", "maybe", "0 or 1"),
        ("VLLM_MLX_DEVICE", "tpu", "gpu or cpu"),
        ("VLLM_METAL_BLOCK_SIZE", "0", "an integer from 1 to 1024"),
        ("VLLM_METAL_DEBUG", "2", "0 or 1"),
        ("VLLM_METAL_USE_PAGED_ATTENTION", "2", "0 or 1"),
        ("VLLM_USE_MODELSCOPE", "yes", "True or False"),
        ("VLLM_METAL_PREFIX_CACHE", "always", "0 or 1"),
        ("VLLM_METAL_PREFIX_CACHE_FRACTION", "1.1", "a number in (0, 1]"),
    ],
)
def test_a_bad_value_is_named(capsys, monkeypatch, name, value, allowed):
    monkeypatch.setenv(name, value)
    assert main(["env"]) == 1
    message = capsys.readouterr().err
    assert f"{name} must be {allowed}" in message
    assert f"but is '{value}'" in message


def test_the_documentation_has_the_same_table(capsys):
    assert main(["env", "--markdown"]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 12
    assert (ROOT / "docs" / "configuration.md").read_text().count(table) == 1
