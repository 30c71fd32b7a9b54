# SPDX-License-Identifier: Apache-2.0
"""What vLLM's torch sampler is told of a batch.

vLLM's own InputBatch would build it too, but it also keeps all tokens and block tables of all
requests there can be, [max_num_seqs, max_model_len], which nothing here reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.sample.metadata import SamplingMetadata

if TYPE_CHECKING:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder


@dataclass(eq=False)
class SampledRequest:
    """A request whose tokens torch draws."""

    params: SamplingParams
    prompt_token_ids: list[int]
    output_token_ids: list[int]  # the one list of it: processors hold it and see it grow
    seed: int
    generator: torch.Generator = field(default_factory=torch.Generator)

    def seed_next_draw(self) -> None:
        """Make the next draw depend on the seed and the number of outputs only.

        So it is the same whatever the request was batched with and however often preempted.
        """
        self.generator.manual_seed(_mixed(self.seed, len(self.output_token_ids)))


def _mixed(seed: int, output_index: int) -> int:
    """Return 64 bits of both: SplitMix64 (Steele, Lea, Flood 2014), output_index + 1 steps on."""
    mask = 2**64 - 1
    bits = (seed + (output_index + 1) * 0x9E3779B97F4A7C15) & mask
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
    return bits ^ bits >> 31


def num_logprobs(params: SamplingParams, vocab_size: int) -> int | None:
    """Return how many tokens' logprobs are asked for beside the drawn one's; None: not even it."""
    if params.logprob_token_ids is not None:
        return len(params.logprob_token_ids)
    if params.logprobs is None:
        return None
    return vocab_size if params.logprobs == -1 else min(params.logprobs, vocab_size)


def sampling_metadata(
    requests: Sequence[SampledRequest],
    vocab_size: int,
    logits_processors: "LogitsProcessors",
    thinking_budget: "ThinkingBudgetStateHolder | None",
) -> SamplingMetadata:
    """Describe a batch of requests. With any logprobs asked for, the sampler returns all scores."""
    params = [request.params for request in requests]
    is_greedy = [p.sampling_type == SamplingType.GREEDY for p in params]
    top_k = [p.top_k if 0 < p.top_k < vocab_size else vocab_size for p in params]
    needs_logprobs = any(num_logprobs(p, vocab_size) is not None for p in params)
    no_penalties = not any(
        p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1 for p in params
    )
    return SamplingMetadata(
        temperature=None if all(is_greedy) else _floats(params, "temperature"),
        all_greedy=all(is_greedy),
        all_random=not any(is_greedy),
        top_p=_floats(params, "top_p") if any(p.top_p < 1 for p in params) else None,
        top_k=torch.tensor(top_k, dtype=torch.int32) if min(top_k) < vocab_size else None,
        # Greedy rows too, or the sampler draws noise for the whole batch once more.
        generators={row: request.generator for row, request in enumerate(requests)},
        max_num_logprobs=-1 if needs_logprobs else None,
        no_penalties=no_penalties,
        prompt_token_ids=None if no_penalties else _padded_prompts(requests, vocab_size),
        presence_penalties=_floats(params, "presence_penalty"),
        frequency_penalties=_floats(params, "frequency_penalty"),
        repetition_penalties=_floats(params, "repetition_penalty"),
        output_token_ids=[request.output_token_ids for request in requests],
        allowed_token_ids_mask=_forbidden_tokens(params, vocab_size),
        bad_words_token_ids={
            row: p.bad_words_token_ids for row, p in enumerate(params) if p.bad_words_token_ids
        },
        logitsprocs=logits_processors,
        thinking_budget_state_holder=thinking_budget,
    )


def _floats(params: Sequence[SamplingParams], name: str) -> torch.Tensor:
    values: list[Any] = [getattr(p, name) for p in params]
    return torch.tensor(values, dtype=torch.float32)


def _padded_prompts(requests: Sequence[SampledRequest], vocab_size: int) -> torch.Tensor:
    """Return int64 [num_requests, longest prompt], padded with a token that is none."""
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(request.prompt_token_ids, dtype=torch.int64) for request in requests],
        batch_first=True,
        padding_value=vocab_size,
    )


def _forbidden_tokens(params: Sequence[SamplingParams], vocab_size: int) -> torch.Tensor | None:
    """Return bool [num_requests, vocab_size], None where every request may draw every token."""
    if not any(p.allowed_token_ids for p in params):
        return None
    forbidden = torch.zeros(len(params), vocab_size, dtype=torch.bool)
    for row, p in enumerate(params):
        if p.allowed_token_ids:
            forbidden[row] = True
            forbidden[row, p.allowed_token_ids] = False
    return forbidden
