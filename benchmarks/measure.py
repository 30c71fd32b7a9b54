# SPDX-License-Identifier: Apache-2.0
"""What all benchmarks share: their arguments, their result, how it is printed and stored.

A row compares ours with a peer, or with a limit. Its ratio is above one where ours is better,
whether the numbers are speeds or times, and its target is a ratio too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from machine import Machine, num_cores

ROOT = Path(__file__).resolve().parent.parent
FORMAT = 1
AT_MOST = "at most"  # the peer of a row that has a limit instead


@dataclass
class Row:
    """Values of every counted run, warm-up left out; one value where nothing is repeated."""

    what: str
    unit: str
    ours: list[float]
    peer: str = ""  # whom or what `theirs` is of
    theirs: list[float] = field(default_factory=list)
    higher_is_better: bool = True
    target: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours to theirs, by medians; above one is better."""
        if not self.theirs:
            return None
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return ours / theirs if self.higher_is_better else theirs / ours

    def to_json(self) -> dict[str, Any]:
        ratio = self.ratio
        return asdict(self) | {
            "ours_median": statistics.median(self.ours),
            "theirs_median": statistics.median(self.theirs) if self.theirs else None,
            "ratio": ratio,
            "met": None if ratio is None or self.target is None else ratio >= self.target,
        }


@dataclass
class Result:
    script: str
    machine: Machine
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def finish(self, file: Path | None) -> None:
        """Print everything, and write it where --json says."""
        print(self.machine.line())
        print(", ".join(f"{name} {version}" for name, version in self.versions.items()))
        print(", ".join(f"{name} {value}" for name, value in self.settings.items()))
        print(table([row.to_json() for row in self.rows]))
        for note in self.notes:
            print(note)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "script": self.script,
            "commit": commit(),
            "machine": asdict(self.machine),
            "versions": self.versions,
            "settings": self.settings,
            "rows": [row.to_json() for row in self.rows],
            "notes": self.notes,
        }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Row.to_json writes them, for people."""
    heads = ("what", "ours", "peer", "ratio", "target", "met?")
    lines = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    theirs, ratio, target = row["theirs_median"], row["ratio"], row["target"]
    return (
        row["what"],
        f"{short(row['ours_median'])} {row['unit']}",
        "" if theirs is None else f"{short(theirs)} {row['peer']}",
        "" if ratio is None else f"{ratio:.2f}",
        "" if target is None else f">= {target:g}",
        {True: "yes", False: "NO", None: ""}[row["met"]],
    )


def short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def arguments(description: str | None, runs: int) -> argparse.ArgumentParser:
    """Parser of the arguments that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=int, default=runs, help=f"counted runs, after one of warm-up ({runs})"
    )
    parser.add_argument("--threads", type=int, default=num_cores(), help="of every engine")
    parser.add_argument("--quick", action="store_true", help="shorter and fewer: to see it work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def commit() -> str:
    """Return the checkout's commit, marked where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
