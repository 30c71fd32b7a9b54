# SPDX-License-Identifier: Apache-2.0
"""Greedy tokens of one request, a step at a time, by our core and by transformers on torch."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_metal import _core

# Tokens that follow a prompt, as many as asked for.
Generate = Callable[[list[int], int], Iterator[int]]

_BLOCK_SIZE = 16


def load_core(
    directory: Path, dtype: str | None = None
) -> "tuple[_core.ModelRunner, dict[str, Any], str]":
    """Load a model into the core; return it, its config, and the dtype; None: the config's."""
    from vllm_metal import _core

    text = (directory / "config.json").read_text(encoding="utf-8")
    config = json.loads(text)
    dtype = dtype or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return _core.ModelRunner(str(directory), text, dtype), config, dtype


def core_tokens(
    model: Path, dtype: str | None, context: int
) -> "tuple[_core.ModelRunner, Generate]":
    """Load a model into the core, with a KV cache for `context` tokens; dtype None: its own."""
    from vllm_metal import _core

    runner, _, _ = load_core(model, dtype)
    runner.initialize_kv_cache(context + _BLOCK_SIZE, _BLOCK_SIZE)
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

    return runner, generate


def torch_tokens(model: Path, dtype: str, device: str) -> Generate:
    """Load a model into transformers on one of torch's devices."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=getattr(torch, dtype))
    loaded = loaded.to(device).eval()

    @torch.inference_mode()
    def next_token(token_ids: list[int], cache: DynamicCache) -> int:
        output = loaded(
            torch.tensor([token_ids], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(output.logits[0, -1].argmax())

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        cache = DynamicCache(config=loaded.config)
        token = next_token(prompt, cache)
        yield token
        for _ in range(new_tokens - 1):
            token = next_token([token], cache)
            yield token

    return generate
