# SPDX-License-Identifier: Apache-2.0
"""Our core without vLLM: one request, a step at a time."""

from importlib.metadata import version
from pathlib import Path

import child
from vllm_metal.selftest.greedy import core_tokens


def main() -> None:
    settings = child.settings()
    runner, generate = core_tokens(
        Path(settings["model"]), settings.get("dtype"), settings["context"]
    )
    versions = {name: version(name) for name in ("vllm-metal", "mlx")}
    run = child.timed(generate)
    child.serve(versions, lambda **request: run(**request) | {"weight_bytes": runner.weight_bytes})


main()
