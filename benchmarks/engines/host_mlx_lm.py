# SPDX-License-Identifier: Apache-2.0
"""Steps of mlx-lm on a model so small that its kernels take next to no time."""

from importlib.metadata import version
from pathlib import Path

import child
import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

PROMPT = [1, 2, 3, 4]


def main() -> None:
    model, _ = load_model(Path(child.settings()["model"]))

    def run(batch: int, steps: int, warm_up: int) -> child.Answer:
        cache = make_prompt_cache(model)
        tokens = mx.argmax(model(mx.array([PROMPT] * batch), cache=cache)[:, -1], axis=-1)
        mx.eval(tokens)

        def step(_: int) -> None:
            nonlocal tokens
            tokens = mx.argmax(model(tokens[:, None], cache=cache)[:, -1], axis=-1)
            mx.eval(tokens)

        return child.time_steps(step, steps, warm_up)

    child.serve({name: version(name) for name in ("mlx", "mlx-lm")}, run)


main()
