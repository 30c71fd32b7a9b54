# SPDX-License-Identifier: Apache-2.0
"""What steps spend their time on, as a trace for chrome://tracing or ui.perfetto.dev.

On Metal a capture of the GPU's work is written beside it, where MTL_CAPTURE_ENABLED=1 allows it.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.config import ProfilerConfig

    from vllm_metal import _core

logger = get_logger(__name__)

# Rows of the trace.
_HOST, _FORWARD, _SAMPLING = 1, 2, 3
_ROWS = {_HOST: "host: launch", _FORWARD: "forward", _SAMPLING: "sampling"}


@dataclass(frozen=True)
class LaunchedStep:
    """When a step was launched, in seconds of `time.perf_counter`, and how large it was."""

    begin: float
    end: float
    num_requests: int
    num_tokens: int


@dataclass
class StepTrace:
    """Collects events of steps until it is written."""

    path: Path
    skipped: int = 0  # steps before the first that counts
    limit: int = 0  # steps that count; 0: all
    _events: list[dict[str, Any]] = field(default_factory=list)
    _num_steps: int = 0
    _free_from: float = 0.0  # when the device was done with the step before
    _start: float = field(default_factory=time.perf_counter)

    @classmethod
    def begin(
        cls,
        config: "ProfilerConfig",
        prefix: str | None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> "StepTrace":
        """Start a trace by vLLM's settings, of which those of the session come first."""
        name = f"{prefix or 'vllm-metal'}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.json"
        path = Path(config.torch_profiler_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        skipped = config.delay_iterations if delay_iterations is None else delay_iterations
        limit = config.max_iterations if max_iterations is None else max_iterations
        trace = cls(path, skipped, limit)
        trace._capture(start=True)
        return trace

    def add(self, launched: LaunchedStep, output: "_core.StepOutput") -> None:
        """Add a step whose output is there."""
        self._num_steps += 1
        # As the core counts: from its launch, or when the step before was done.
        begin = max(launched.begin, self._free_from)
        sampling = begin + output.forward_ms / 1e3
        self._free_from = sampling + output.sampling_ms / 1e3
        counted = self._num_steps - self.skipped
        if counted < 1 or 0 < self.limit < counted:
            return
        size = {"requests": launched.num_requests, "tokens": launched.num_tokens}
        self._event("launch", _HOST, launched.begin, launched.end, size)
        self._event("forward", _FORWARD, begin, sampling, size)
        self._event("sampling", _SAMPLING, sampling, self._free_from, size)

    def write(self) -> Path:
        """Write what was collected; returns the file."""
        self._capture(start=False)
        names: list[dict[str, Any]] = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": row, "args": {"name": name}}
            for row, name in _ROWS.items()
        ]
        trace = {"displayTimeUnit": "ms", "traceEvents": [*names, *self._events]}
        self.path.write_text(json.dumps(trace), encoding="utf-8")
        logger.info("%d steps are in %s", len(self._events) // len(_ROWS), self.path)
        return self.path

    def _event(self, name: str, row: int, begin: float, end: float, size: dict[str, int]) -> None:
        self._events.append(
            {
                "name": name,
                "ph": "X",
                "pid": 1,
                "tid": row,
                "ts": round((begin - self._start) * 1e6, 1),
                "dur": round((end - begin) * 1e6, 1),
                "args": size,
            }
        )

    def _capture(self, *, start: bool) -> None:
        from vllm_metal import _core

        if os.environ.get("MTL_CAPTURE_ENABLED") != "1":
            return
        if _core.device_info()["backend"] == "metal":
            _core.capture_metal(str(self.path.with_suffix(".gputrace")) if start else None)
