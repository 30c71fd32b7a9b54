# SPDX-License-Identifier: Apache-2.0
"""The process that times one engine for `bench`: `python -m vllm_metal.selftest.engine JSON`."""

import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_metal.selftest.greedy import Generate, core_tokens, torch_tokens


def torch_device(backend: str) -> str:
    """Return torch's device that is like MLX's back end."""
    import torch

    if backend == "metal" and torch.backends.mps.is_available():
        return "mps"
    return "cuda" if backend == "cuda" and torch.cuda.is_available() else "cpu"


def load(engine: str, model: Path, dtype: str, context: int) -> tuple[Generate, str]:
    """Return what generates, and the device that it computes on."""
    from vllm_metal import _core

    backend = _core.device_info()["backend"]
    if engine == "core":
        return core_tokens(model, dtype, context)[1], backend
    device = torch_device(backend)
    return torch_tokens(model, dtype, device), device


def speeds(generate: Generate, prompt: list[int], new_tokens: int, runs: int) -> dict[str, float]:
    """Return tokens a second: medians of `runs` after one that does not count."""
    timed = [_seconds(generate(prompt, new_tokens)) for _ in range(runs + 1)][1:]
    prefill, decode = (statistics.median(column) for column in zip(*timed, strict=True))
    return {"prefill": len(prompt) / prefill, "decode": (new_tokens - 1) / decode}


def _seconds(tokens: Iterator[int]) -> tuple[float, float]:
    """Return the seconds until the first token, and from there to the last."""
    start = time.perf_counter()
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return first - start, time.perf_counter() - first


def main() -> None:
    """Time what the first argument says; the last line of output is the result."""
    request: dict[str, Any] = json.loads(sys.argv[1])
    prompt = [3 + i * 7 % 1000 for i in range(request["prompt_tokens"])]
    context = len(prompt) + request["new_tokens"]
    generate, device = load(request["engine"], Path(request["model"]), request["dtype"], context)
    result = speeds(generate, prompt, request["new_tokens"], request["runs"])
    print(json.dumps(result | {"device": device}))


if __name__ == "__main__":
    main()
