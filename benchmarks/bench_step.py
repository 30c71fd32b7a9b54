# SPDX-License-Identifier: Apache-2.0
"""What vLLM and the plugin add to a step: the core alone and under vLLM's engine in one run.

All requests decode, greedily, one token a step. "core" is the core in a bare loop, with two steps
under way. "async" and "sync" are vLLM's engine core (scheduler, plugin, core) with and without
asynchronous scheduling, in this process; the API server is another one and not measured here.

  wall      from one step to the next
  idle      the device waits for the engine: what is not hidden behind its work
  forward   until the logits are there; sampling: until the tokens are

Parts of wall that the engine's thread spends, hidden or not: schedule, launch (of the forward
pass, translation included), draw, wait (for the tokens), update (of the scheduler).

Engines take turns, so that a machine that slows down slows all of them. Where all cores compute,
work that is hidden still takes time from them, which shows as a longer forward: --threads 1 leaves
the engine a core, as a GPU would.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
from machine import Machine
from measure import Result, Row, arguments

PROMPT_LEN = 32
WARM_UP_STEPS = 8

Figures = dict[str, float]  # milliseconds a step, by what they are


def prompt(request: int) -> list[int]:
    """Any ids do: the work does not depend on them."""
    return [1000 + (17 * i + 131 * request) % 40000 for i in range(PROMPT_LEN)]


def core_alone(model_dir: Path, clients: int, steps: int) -> Callable[[], Figures]:
    from vllm_metal import _core

    config = json.loads((model_dir / "config.json").read_text())
    runner = _core.ModelRunner(
        str(model_dir), json.dumps(config), config.get("dtype") or config["torch_dtype"]
    )
    runner.initialize_kv_cache(clients * (PROMPT_LEN + steps + 32), 16)
    greedy = _core.SamplingParams(temperature=0.0)
    ids = [str(client) for client in range(clients)]

    def run() -> Figures:
        runner.step(
            finished=ids,
            new_requests=[(request, prompt(i), 0, greedy) for i, request in enumerate(ids)],
            scheduled=[(request, 0, PROMPT_LEN) for request in ids],
        )
        outputs, times, pending = [], [], None
        for step in range(steps):
            runner.launch(scheduled=[(request, PROMPT_LEN + step, 1) for request in ids])
            launched = runner.draw()
            if pending is not None:
                outputs.append(pending.wait())
            times.append(time.perf_counter())
            pending = launched
        assert pending is not None
        outputs.append(pending.wait())
        return figures(outputs, times)

    return run


def figures(outputs: list[Any], times: list[float]) -> Figures:
    """Medians of the steps after warm-up, of which times of day are `times`."""
    outputs, times = outputs[WARM_UP_STEPS:], times[WARM_UP_STEPS:]
    walls = [1000 * (after - before) for before, after in itertools.pairwise(times)]
    return {
        "wall": statistics.median(walls),
        **{
            name: statistics.median(getattr(output, f"{name}_ms") for output in outputs)
            for name in ("idle", "forward", "sampling")
        },
    }


class Parts:
    """Adds up the time spent in methods."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def measure(self, owner: Any, method: str, name: str) -> None:
        call = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        setattr(owner, method, timed)


def engine(
    model_dir: Path, clients: int, steps: int, async_scheduling: bool
) -> Callable[[], Figures]:
    from vllm import LLM, SamplingParams
    from vllm_metal.model_runner import PendingStep

    llm = LLM(
        str(model_dir),
        max_model_len=PROMPT_LEN + steps + 32,
        max_num_seqs=clients,
        kv_cache_memory_bytes=1 << 30,
        async_scheduling=async_scheduling,
        disable_log_stats=True,
    )
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    params = SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True)
    parts, outputs = Parts(), []
    parts.measure(core.scheduler, "schedule", "schedule")
    parts.measure(core.scheduler, "update_from_output", "update")
    parts.measure(runner, "execute_model", "launch")
    parts.measure(runner, "sample_tokens", "draw" if async_scheduling else "draw and wait")
    if async_scheduling:
        get_output = PendingStep.get_output

        def timed(step: PendingStep) -> Any:
            start = time.perf_counter()
            output = get_output(step)
            parts.seconds["wait"] += time.perf_counter() - start
            return output

        PendingStep.get_output = timed
    # The core's own figures of each step.
    draw = runner._core.draw
    runner._core = _Recorded(runner._core, draw, outputs)

    def run() -> Figures:
        outputs.clear()
        for client in range(clients):
            llm.llm_engine.add_request(
                f"{time.monotonic_ns()}-{client}", {"prompt_token_ids": prompt(client)}, params
            )
        times: list[float] = []
        while core.scheduler.has_requests() or core.batch_queue:
            core.step_fn()
            if len(times) == WARM_UP_STEPS:
                parts.seconds.clear()
            times.append(time.perf_counter())
        num_steps = len(times) - WARM_UP_STEPS - 1
        llm.llm_engine.output_processor.abort_requests(
            list(llm.llm_engine.output_processor.request_states), internal=True
        )
        result = figures([output.wait() for output in outputs], times)
        return result | {
            name: 1000 * seconds / num_steps for name, seconds in parts.seconds.items()
        }

    return run


class _Recorded:
    """The core's runner, keeping the pending output of each step."""

    def __init__(self, core: Any, draw: Callable, outputs: list[Any]) -> None:
        self._core, self._draw, self._outputs = core, draw, outputs

    def draw(self, **arguments: Any) -> Any:
        self._outputs.append(self._draw(**arguments))
        return self._outputs[-1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)


def rows(runs: list[dict[str, Figures]], clients: int) -> list[Row]:
    """Every figure of every engine, and the wall time of the engines against the bare core's."""
    table = []
    for name in runs[0]:
        for part in runs[0][name]:
            row = Row(f"{clients} clients, {name}: {part}", "ms", [run[name][part] for run in runs])
            if part == "wall" and name != "core":
                row.peer, row.theirs = "core", [run["core"]["wall"] for run in runs]
                row.higher_is_better = False
            table.append(row)
    return table


def main() -> int:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--model", type=Path, help="model directory; else the default model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    if options.quick:
        options.steps = 40
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
    model = options.model or peers.default_model()[0]
    lengths = (model, options.clients, options.steps)
    engines = {
        "core": core_alone(*lengths),
        "async": engine(*lengths, async_scheduling=True),
        "sync": engine(*lengths, async_scheduling=False),
    }
    for run in engines.values():
        run()
    runs = [{name: run() for name, run in engines.items()} for _ in range(options.runs)]
    versions = peers.versions("vllm", "vllm-metal", "mlx")
    settings = {"runs": options.runs, "steps": options.steps}
    machine = Machine.here(options.threads)
    result = Result(Path(__file__).name, machine, versions, settings, rows(runs, options.clients))
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
