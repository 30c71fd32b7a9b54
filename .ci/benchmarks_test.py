# SPDX-License-Identifier: Apache-2.0
"""What benchmarks make of their values, and that every script explains itself."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from measure import ROOT, Row, table
from turns import take_turns


@pytest.mark.parametrize(
    ("row", "ratio", "met"),
    [
        (Row("x", "tokens/s", [90, 100, 900], "p", [50], target=2), 2, True),
        (Row("x", "tokens/s", [100], "p", [80, 80, 1], target=2), 1.25, False),
        (Row("x", "s", [2], "p", [8], higher_is_better=False, target=4), 4, True),
        (Row("x", "s", [2], "p", [1], higher_is_better=False, target=1), 0.5, False),
        (Row("x", "s", [2], "p", [1]), 2, None),
        (Row("x", "s", [2]), None, None),
    ],
)
def test_ratios_are_of_medians_and_above_one_where_ours_is_better(row, ratio, met):
    assert (row.to_json()["ratio"], row.to_json()["met"]) == (ratio, met)


def test_table_tells_what_is_missed():
    rows = [Row("decode", "tokens/s", [10], "peer", [20], target=1).to_json()]
    assert table(rows).splitlines()[1].split() == [
        *("decode", "10", "tokens/s", "20", "peer", "0.50", ">=", "1", "NO")
    ]


class Recorded:
    def __init__(self, name, record):
        self.name, self.record = name, record

    def run(self, **request):
        self.record.append(self.name)
        return {"run": len(self.record), **request}


def test_engines_take_turns_and_the_first_turn_does_not_count():
    record = []
    children = {name: Recorded(name, record) for name in "abc"}
    answers = take_turns(children, {"a": 2, "b": 1, "c": 2}, {name: {"n": 1} for name in "abc"})
    assert record == [*"abc", *"abc", *"ac"]
    assert [run["run"] for run in answers["a"]] == [4, 7]
    assert len(answers["b"]) == 1


SCRIPTS = sorted((ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_help_names_the_common_options(script):
    output = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in ("--json", "--runs", "--quick", "--threads"):
        assert option in output
