# SPDX-License-Identifier: Apache-2.0
"""The report of a run: a table for people, JSON for programs, both fit to be attached to a bug."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_metal.selftest.checks import FAILED, PASSED, SKIPPED, Result

SCHEMA = 1


@dataclass
class Report:
    """What was run where, and what came of it."""

    facts: dict[str, Any]
    options: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    device: dict[str, Any] | None = None

    def count(self, status: str) -> int:
        """Return how many checks ended so."""
        return sum(result.status == status for result in self.results)

    def note_device(self, result: Result) -> None:
        """Take facts about MLX's device from the check that asks for them."""
        self.device = result.figures or None

    @property
    def passed(self) -> bool:
        """Whether something passed and nothing failed."""
        return self.count(FAILED) == 0 and self.count(PASSED) > 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the user's name and home folder."""
        data = {
            "schema": SCHEMA,
            "passed": self.passed,
            "summary": {status: self.count(status) for status in (PASSED, FAILED, SKIPPED)},
            "seconds": self.seconds,
            "platform": self.facts | {"device": self.device},
            "options": self.options,
            "checks": [result.to_json() for result in self.results],
        }
        return without_user(_changed(data, _finite))

    def text(self, every_check: bool) -> str:
        """Return the tables: of parts of groups, of all checks if wanted, of what went wrong."""
        parts = [_facts_text(self.facts, self.device), table(_part_rows(self.results))]
        if every_check:
            parts.append(table(_check_rows(self.results)))
        parts += _details(self.results)
        parts.append(self.summary())
        return without_user("\n\n".join(parts))

    def summary(self) -> str:
        """Return the last line."""
        counts = ", ".join(f"{self.count(status)} {status}" for status in (PASSED, FAILED, SKIPPED))
        verdict = "passed" if self.passed else "FAILED"
        return f"Self-test {verdict}: {counts}, in {self.seconds:.0f} s."


def _changed(data: Any, change: Callable[[Any], Any]) -> Any:
    """Return data with each value in it changed, however deep."""
    if isinstance(data, dict):
        return {key: _changed(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_changed(value, change) for value in data]
    return change(data)


def without_user(data: Any) -> Any:
    """Return data with the home folder as ~ and folders of users without their names."""
    home = str(Path.home())

    def change(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if home != "/":
            value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
        return re.sub(r"(/(?:home|Users)/)[^/\s:'\"]+", r"\1-", value)

    return _changed(data, change)


def _finite(value: Any) -> Any:
    """Return numbers that JSON does not have, such as NaN, as text."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: list[tuple[str, ...]]) -> str:
    """Return rows in columns, the first of them the heads."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _facts_text(facts: dict[str, Any], device: dict[str, Any] | None) -> str:
    system = f"macOS {facts['macos']}" if facts["macos"] else facts["system"]
    where = f"{device['name']} ({device['backend']})" if device else "unknown"
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in facts["versions"].items())
    memory = facts["memory_bytes"] / 2**30
    return (
        f"Machine   {facts['processor']}, {facts['cores']} cores, {memory:.0f} GiB\n"
        f"System    {system} {facts['machine']}, Python {facts['python']}\n"
        f"Device    {where}\n"
        f"Versions  {versions}"
    )


def _part_rows(results: list[Result]) -> list[tuple[str, ...]]:
    """Return a row for the first two parts of names, which say what and where."""
    rows: list[tuple[str, ...]] = [("part", PASSED, FAILED, SKIPPED, "worst error", "seconds")]
    parts: dict[str, list[Result]] = {}
    for result in results:
        parts.setdefault("/".join(result.name.split("/")[:2]), []).append(result)
    for part, of_part in parts.items():
        counts = [
            str(sum(result.status == status for result in of_part))
            for status in (PASSED, FAILED, SKIPPED)
        ]
        seconds = sum(result.seconds for result in of_part)
        rows.append((part, *counts, _worst(of_part), f"{seconds:.1f}"))
    return rows


def _worst(results: list[Result]) -> str:
    """Return the error that is largest in relation to its tolerance."""
    ratios = [
        result.worst_error / result.tolerance
        for result in results
        if result.worst_error is not None and result.tolerance
    ]
    return f"{max(ratios):.0%} of tolerance" if ratios else ""


def _check_rows(results: list[Result]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("check", "status", "worst error", "tolerance", "seconds", "")]
    for result in results:
        detail = result.detail.splitlines()[0] if result.detail else ""
        rows.append(
            (
                result.name,
                result.status,
                number(result.worst_error),
                number(result.tolerance),
                f"{result.seconds:.2f}",
                detail[:100],
            )
        )
    return rows


def number(value: float | None) -> str:
    """Return a number for a table."""
    return "" if value is None else f"{value:.3g}"


def _details(results: list[Result]) -> Iterator[str]:
    """What failed in full, and a line for each reason to skip."""
    for result in results:
        if result.status == FAILED:
            compared = (
                f"error {number(result.worst_error)}, tolerance {number(result.tolerance)}. "
                if result.worst_error is not None
                else ""
            )
            yield f"FAILED {result.name}: {compared}{result.detail}"
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result.status == SKIPPED:
            reasons.setdefault(result.detail, []).append(result.name)
    for reason, names in reasons.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        yield f"Skipped: {reason}: {shown}"
