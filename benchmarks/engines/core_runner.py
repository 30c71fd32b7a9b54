# SPDX-License-Identifier: Apache-2.0
"""Our core without vLLM: one request, a step at a time."""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import child
from vllm_metal import _core

BLOCK_SIZE = 16


def main() -> None:
    settings = child.settings()
    config = json.loads((Path(settings["model"]) / "config.json").read_text())
    dtype = settings.get("dtype") or config["dtype"]
    runner = _core.ModelRunner(settings["model"], json.dumps(config), dtype)
    runner.initialize_kv_cache(settings["context"] + BLOCK_SIZE, BLOCK_SIZE)
    greedy = _core.SamplingParams(temperature=0.0)

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        output = runner.step(
            finished=["r"],
            new_requests=[("r", prompt, 0, greedy)],
            scheduled=[("r", 0, len(prompt))],
        )
        yield output.token_ids[0][0]
        for i in range(new_tokens - 1):
            yield runner.step(scheduled=[("r", len(prompt) + i, 1)]).token_ids[0][0]

    versions = {name: version(name) for name in ("vllm-metal", "mlx")}
    run = child.timed(generate)
    child.serve(versions, lambda **request: run(**request) | {"weight_bytes": runner.weight_bytes})


main()
