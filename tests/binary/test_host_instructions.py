# SPDX-License-Identifier: Apache-2.0
"""The host's work for a step does not creep up: its instructions against those on record."""

import json
import platform
import shutil
import subprocess
import sys

import pytest
from build_folder import ROOT, built

SCRIPT = ROOT / "benchmarks" / "count_instructions.py"


def test_the_record_is_complete():
    record = json.loads((ROOT / "benchmarks" / "instructions.json").read_text())
    assert sorted(record) == ["1", "32"]
    for groups in record.values():
        assert groups["host"] == groups["core"] + groups["mlx"] + groups["system"] > 0


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the record is of x86-64")
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_a_step_costs_the_host_what_is_on_record():
    built("tests/cpp/decode_steps")
    result = subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, (
        f"{result.stdout}{result.stderr}\n"
        f"Show the functions with {SCRIPT} --top 25; if the change is meant, --update the record."
    )
