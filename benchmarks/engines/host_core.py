# SPDX-License-Identifier: Apache-2.0
"""Steps of our core on a model so small that its kernels take next to no time."""

import json
from importlib.metadata import version
from pathlib import Path

import child
from vllm_metal import _core

BLOCK_SIZE, PROMPT = 16, [1, 2, 3, 4]


def new_runner(model: str, num_tokens: int) -> _core.ModelRunner:
    config = json.loads((Path(model) / "config.json").read_text())
    runner = _core.ModelRunner(model, json.dumps(config), config["dtype"])
    runner.initialize_kv_cache(num_tokens, BLOCK_SIZE)
    return runner


def main() -> None:
    settings = child.settings()
    greedy = _core.SamplingParams(temperature=0.0)
    runner = new_runner(settings["model"], settings["num_tokens"])

    def begin(batch: int) -> list[str]:
        ids = [str(i) for i in range(batch)]
        runner.step(
            new_requests=[(i, PROMPT, 0, greedy) for i in ids],
            scheduled=[(i, 0, len(PROMPT)) for i in ids],
        )
        return ids

    def run(batch: int, steps: int, warm_up: int) -> child.Answer:
        ids = begin(batch)

        def step(number: int) -> None:
            runner.step(scheduled=[(i, len(PROMPT) + number, 1) for i in ids])

        times = child.time_steps(step, steps, warm_up)
        runner.count_nodes(True)
        step(warm_up + steps)
        runner.count_nodes(False)
        runner.step(finished=ids)
        return times | {"nodes": runner.last_step_nodes}

    child.serve({name: version(name) for name in ("vllm-metal", "mlx")}, run)


main()
