# SPDX-License-Identifier: Apache-2.0
"""transformers on torch, on the GPU of a Mac (mps) or the CPU: the model called step by step."""

from collections.abc import Iterator
from importlib.metadata import version

import child
import torch
from transformers import AutoModelForCausalLM, DynamicCache


def main() -> None:
    settings = child.settings()
    torch.set_num_threads(settings["threads"])
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    dtype = getattr(torch, settings["dtype"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def next_token(token_ids: list[int], cache: DynamicCache) -> int:
        output = model(
            torch.tensor([token_ids], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        cache = DynamicCache(config=model.config)
        token = next_token(prompt, cache)
        yield token
        for _ in range(new_tokens - 1):
            token = next_token([token], cache)
            yield token

    versions = {name: version(name) for name in ("torch", "transformers")}
    child.serve(versions | {"torch device": device}, child.timed(generate))


main()
