# SPDX-License-Identifier: Apache-2.0
"""transformers on the same weights, dequantised to float32: the judge of greedy answers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Choices:
    """The reference's choice at every step of an answer, given the steps before it.

    An answer that makes all these choices itself is what greedy search says.
    """

    token_ids: list[int]
    margins: list[float]  # best logit less the second best
    scales: list[float]  # largest absolute logit


class Reference:
    def __init__(self, directory: Path) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        config = AutoConfig.from_pretrained(directory)
        for key in ("quantization", "quantization_config"):
            if hasattr(config, key):
                delattr(config, key)
        self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        missing, surplus = self.model.load_state_dict(_dequantised(directory), strict=False)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        assert (set(missing) - tied, surplus) == (set(), [])
        self._choices: dict[tuple[int, ...], Choices] = {}

    def chat_tokens(self, messages: list[dict[str, str]]) -> list[int]:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )

    @torch.inference_mode()
    def logits(self, token_ids: list[int], num_positions: int = 1) -> torch.Tensor:
        """Return the logits after each of the last positions, [num_positions, vocab_size]."""
        output = self.model(
            torch.tensor([token_ids]), use_cache=False, logits_to_keep=num_positions
        )
        return output.logits[0]

    def choices(self, prompt: list[int], answer: list[int]) -> Choices:
        """Judge every step of `answer`; equal logits go to the lowest id."""
        tokens = [*prompt, *answer[:-1]]
        if tuple(tokens) not in self._choices:
            logits = self.logits(tokens, len(answer))
            best = torch.topk(logits, 2).values  # [len(answer), 2]
            self._choices[tuple(tokens)] = Choices(
                token_ids=torch.argmax((logits == best[:, :1]).int(), dim=-1).tolist(),
                margins=(best[:, 0] - best[:, 1]).tolist(),
                scales=logits.abs().amax(dim=-1).tolist(),
            )
        return self._choices[tuple(tokens)]

    def greedy_under(
        self,
        prompt: list[int],
        answer: list[int],
        change: Callable[[torch.Tensor, list[int]], torch.Tensor],
    ) -> list[int]:
        """Return the best token of every step of `answer` after `change` of its logits.

        `change` is given logits [vocab_size] and the answer so far, and returns new logits.
        """
        logits = self.logits([*prompt, *answer[:-1]], len(answer))
        return [
            int(torch.argmax(change(row.clone(), answer[:step]))) for step, row in enumerate(logits)
        ]

    def logprobs(self, token_ids: list[int], num_positions: int = 1) -> torch.Tensor:
        """Return logprobs of what follows each of the last positions, [num_positions, vocab]."""
        return torch.log_softmax(self.logits(token_ids, num_positions), dim=-1)


def _dequantised(directory: Path) -> dict[str, torch.Tensor]:
    """Read all weights, with MLX's packed ones as the float32 numbers they stand for."""
    import mlx.core as mx
    import numpy as np

    config = json.loads((directory / "config.json").read_text())
    default = config.get("quantization") or {}
    tensors: dict[str, Any] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors |= mx.load(str(file))
    weights = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if name != f"{module}.weight":
            continue
        if f"{module}.scales" in tensors:
            spec = default.get(module) or default
            tensor = mx.dequantize(  # noqa: PLW2901
                tensor,
                tensors[f"{module}.scales"].astype(mx.float32),
                tensors[f"{module}.biases"].astype(mx.float32),
                group_size=spec["group_size"],
                bits=spec["bits"],
            )
        weights[name] = torch.from_numpy(np.array(tensor.astype(mx.float32)))
    return weights
