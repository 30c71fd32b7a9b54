# SPDX-License-Identifier: Apache-2.0
"""A capture of the GPU's work goes with a trace of steps on Metal, and only there."""

from types import SimpleNamespace

import pytest
from vllm_metal.step_trace import StepTrace


@pytest.fixture
def captured(fake_core, monkeypatch):
    """The paths that captures were started with; None for an end."""
    paths: list[str | None] = []
    monkeypatch.setattr(fake_core, "capture_metal", paths.append, raising=False)
    return paths


@pytest.mark.parametrize(
    "case",  # back end, MTL_CAPTURE_ENABLED, whether it captures
    [("metal", "1", True), ("metal", "0", False), ("metal", None, False), ("cpu", "1", False)],
)
def test_metal_is_captured_where_the_system_allows_it(captured, monkeypatch, tmp_path, case):
    backend, enabled, captures = case
    monkeypatch.setattr("vllm_metal._core.device_info", lambda: {"backend": backend})
    monkeypatch.delenv("MTL_CAPTURE_ENABLED", raising=False)
    if enabled is not None:
        monkeypatch.setenv("MTL_CAPTURE_ENABLED", enabled)
    config = SimpleNamespace(torch_profiler_dir=str(tmp_path), delay_iterations=0, max_iterations=0)
    trace = StepTrace.begin(config, "steps")
    started = [str(trace.path.with_suffix(".gputrace"))] if captures else []
    assert captured == started
    trace.write()
    assert captured == ([*started, None] if captures else [])
