# SPDX-License-Identifier: Apache-2.0
"""mlx-lm: Python on the same MLX, with its own model code."""

from collections.abc import Iterator
from importlib.metadata import version

import child
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import generate_step


def main() -> None:
    model, _ = load(child.settings()["model"])

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        steps = generate_step(mx.array(prompt), model, max_tokens=new_tokens)
        return (int(token) for token, _ in steps)

    # It computes a step more than it was asked for.
    run = child.timed(generate, wait_until_idle=mx.synchronize)
    child.serve({name: version(name) for name in ("mlx", "mlx-lm")}, run)


main()
