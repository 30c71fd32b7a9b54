# SPDX-License-Identifier: Apache-2.0
"""The end of the pipe that an engine under measurement sits on. Standard library only.

A line of JSON comes in for each run, {"prompt": ids, "new_tokens": n}, and one goes out. In
between the process waits in a read, so that it takes no time from whoever's turn it is.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Answer = dict[str, Any]
Generate = Callable[[list[int], int], Iterator[int]]


def settings() -> dict[str, Any]:
    """What the parent wants the engine to be, the command line's one argument."""
    return json.loads(sys.argv[1])


def serve(versions: dict[str, str], run: Callable[..., Answer]) -> None:
    """Say that the engine is ready, then answer each line with what `run` returns for it."""
    # Libraries print to standard output; the answers have it to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)


def timed(
    generate: Generate, wait_until_idle: Callable[[], None] = lambda: None
) -> Callable[..., Answer]:
    """Time an iterator of greedy tokens: the first is prefill, the others are decode."""

    def run(prompt: list[int], new_tokens: int) -> Answer:
        start = time.perf_counter()
        tokens = generate(prompt, new_tokens)
        token_ids = [next(tokens)]
        first = time.perf_counter()
        token_ids += tokens
        end = time.perf_counter()
        wait_until_idle()
        if len(token_ids) != new_tokens:
            raise RuntimeError(f"{len(token_ids)} tokens came, {new_tokens} were asked for")
        return {"prefill": first - start, "decode": end - first, "token_ids": token_ids}

    return run


def time_steps(step: Callable[[int], None], steps: int, warm_up: int) -> Answer:
    """Median milliseconds of a step after warm-up, and the process's CPU time a step."""
    for number in range(warm_up):
        step(number)
    walls = []
    cpu = time.process_time()
    for number in range(warm_up, warm_up + steps):
        start = time.perf_counter()
        step(number)
        walls.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    return {"wall_ms": 1e3 * statistics.median(walls), "cpu_ms": 1e3 * cpu / steps}
