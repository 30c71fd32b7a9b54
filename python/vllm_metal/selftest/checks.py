# SPDX-License-Identifier: Apache-2.0
"""What a check of the self-test is, what comes of it, and what the user asked for."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NO_GPU = "no GPU"

Figures = dict[str, Any]  # plain values, for the report only


class Skip(Exception):  # noqa: N818 - no error
    """Raised by a check that cannot be run here, with the reason."""


class CheckFailed(Exception):  # noqa: N818 - what it says
    """Raised by a check that found something wrong, with what."""


@dataclass(frozen=True)
class Finding:
    """What a check measured; it passes when the error is no larger than the tolerance."""

    worst_error: float | None = None
    tolerance: float | None = None
    detail: str = ""
    figures: Figures = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        if self.worst_error is None or self.tolerance is None:
            return True
        return self.worst_error <= self.tolerance


@dataclass(frozen=True)
class Result:
    """How a check ended."""

    name: str
    status: str
    detail: str = ""
    worst_error: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """A name, `group/…`, and what is to be run under it."""

    name: str
    run: Callable[[], Finding | None]


def run_check(check: Check) -> Result:
    """Run a check; whatever it raises becomes its result."""
    start = time.monotonic()

    def result(status: str, finding: Finding) -> Result:
        return Result(
            check.name,
            status,
            finding.detail,
            finding.worst_error,
            finding.tolerance,
            time.monotonic() - start,
            finding.figures,
        )

    try:
        finding = check.run() or Finding()
    except Skip as reason:
        return result(SKIPPED, Finding(detail=str(reason)))
    except CheckFailed as failure:
        return result(FAILED, Finding(detail=str(failure)))
    except Exception as error:
        return result(FAILED, Finding(detail=f"{type(error).__name__}: {error}"))
    return result(PASSED if finding.passed else FAILED, finding)


@dataclass(frozen=True)
class Options:
    """What was asked for. Plain values: it goes to the processes of the groups as JSON."""

    work: str  # a folder for files of the run, removed at its end
    quick: bool = False
    offline: bool = False
    serve: bool = True
    model: str | None = None  # a model directory to serve, instead of the default model
    pool_limit: int | None = None  # bytes of the largest KV cache that is written
    why_no_gpu: str | None = None  # None: the GPU is used if there is one


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a check is meant: by its name, the beginning of it, or a pattern; by none: yes."""
    return not patterns or any(
        name == pattern or name.startswith(f"{pattern}/") or fnmatchcase(name, pattern)
        for pattern in patterns
    )
