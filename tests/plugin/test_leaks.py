# SPDX-License-Identifier: Apache-2.0
"""The extension tells of objects that outlive the interpreter, and there are none."""

import subprocess
import sys

import pytest

STEP = """
import ctypes, sys
from pathlib import Path
from vllm_metal import _core

config = Path(sys.argv[1], "config.json").read_text()
runner = _core.ModelRunner(sys.argv[1], config, "float32", progress=lambda done, total: None)
runner.initialize_kv_cache(64, 16, 2)
greedy = _core.SamplingParams(temperature=0.0)
request = {"new_requests": [("a", [1, 2, 3], 0, greedy)], "scheduled": [("a", 0, 3)]}
assert len(runner.step(**request).token_ids) == 1
try:
    runner.step(scheduled=[("b", 0, 1)])
except ValueError as error:
    assert "unknown" in str(error)
index = _core.PrefixIndex(2)
index.save([b"hash"])
"""
LOSE = "ctypes.pythonapi.Py_IncRef(ctypes.py_object(index))"


@pytest.mark.parametrize(("ending", "leaks"), [("", False), (LOSE, True)])
def test_no_object_of_the_core_is_left_at_the_end(tiny_llama, ending, leaks):
    program = [sys.executable, "-c", STEP + ending, str(tiny_llama)]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=180, check=True)
    assert ("nanobind: leaked" in ended.stderr) is leaks, ended.stderr
