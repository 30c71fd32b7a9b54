# SPDX-License-Identifier: Apache-2.0
"""A tiny model on both sides: transformers' reference and ours on the same weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from vllm_metal import _core

from tests.parity.architectures import Row


@dataclass
class Pair:
    """One tiny model on both sides."""

    reference: Any  # transformers' model, float32, eval
    directory: Path
    vocab_size: int

    def core(self, dtype: str = "float32", cache_tokens: int = 8192) -> Requests:
        runner = _core.ModelRunner(
            str(self.directory), (self.directory / "config.json").read_text(), dtype
        )
        runner.initialize_kv_cache(cache_tokens, 16)
        runner.keep_logits(True)
        return Requests(runner)

    def reference_logits(self, token_ids: list[int]) -> np.ndarray:
        """Logits of every position of one forward pass, float32 [len, vocab_size]."""
        self.reset_reference()
        ids = torch.tensor([token_ids])
        with torch.no_grad():
            logits = self.reference(
                ids, attention_mask=torch.ones_like(ids), use_cache=False
            ).logits
        return logits[0].float().numpy()

    def reset_reference(self) -> None:
        """Has transformers forget the longest sequence it saw: dynamic rope scales to it."""
        with torch.no_grad():
            self.reference(torch.tensor([[0]]), use_cache=False)


class Requests:
    """Drives the core's runner as the scheduler would, keeping the logits of what is sampled."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self._new: list[Any] = []

    def add(self, request_id: str, token_ids: list[int]) -> None:
        self.tokens[request_id] = list(token_ids)
        self.computed[request_id] = 0
        self._new.append((request_id, list(token_ids), 0, _core.SamplingParams(temperature=0.0)))

    def step(self, counts: dict[str, int]) -> dict[str, np.ndarray]:
        """Computes that many tokens of each request; returns the logits of those at their end."""
        scheduled = [
            (request_id, self.computed[request_id], count) for request_id, count in counts.items()
        ]
        output = self.runner.step(
            finished=[], preempted=[], new_requests=self._new, updates=[], scheduled=scheduled
        )
        self._new = []
        logits, row = {}, 0
        for (request_id, computed, count), tokens in zip(scheduled, output.token_ids, strict=True):
            self.computed[request_id] = computed + count
            if tokens:
                self.tokens[request_id].extend(tokens)
                logits[request_id] = self.runner.last_logits[row]
                row += 1
        return logits

    def force(self, request_id: str, token_ids: list[int]) -> None:
        """Replaces what was generated, so that both sides continue from the same tokens."""
        self.tokens[request_id] = list(token_ids)
        self.runner.step(
            finished=[],
            preempted=[],
            new_requests=[],
            updates=[(request_id, list(token_ids))],
            scheduled=[],
        )


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    assert got.shape == expected.shape
    assert np.isfinite(got).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def random_tokens(seed: int, length: int, vocab_size: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab_size, length).tolist()


def make_pair(row: Row, directory: Path) -> Pair:
    """Writes a random model of that row and loads transformers' side."""
    torch.manual_seed(0)
    model_class = getattr(transformers, row.architecture)
    config = model_class.config_class(**row.config)
    reference = model_class(config).eval()
    for name, parameter in reference.named_parameters():
        if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a lost one
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    reference.save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    assert written["architectures"] == [row.architecture]
    return Pair(reference, directory, config.vocab_size)
