# SPDX-License-Identifier: Apache-2.0
"""transformers on torch, on the GPU of a Mac (mps) or the CPU: the model called step by step."""

from importlib.metadata import version
from pathlib import Path

import child
import torch
from vllm_metal.selftest.greedy import torch_tokens


def main() -> None:
    settings = child.settings()
    torch.set_num_threads(settings["threads"])
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    generate = torch_tokens(Path(settings["model"]), settings["dtype"], device)
    versions = {name: version(name) for name in ("torch", "transformers")}
    child.serve(versions | {"torch device": device}, child.timed(generate))


main()
