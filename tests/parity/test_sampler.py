# SPDX-License-Identifier: Apache-2.0
"""The core's sampler against vLLM's torch sampler on the same logits."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.core.sched.output import GrammarOutput
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.logits_processor import (
    BatchUpdate,
    LogitBiasLogitsProcessor,
    LogitsProcessors,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.sampler import Sampler
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder
from vllm.v1.structured_output.utils import apply_grammar_bitmask
from vllm_metal import _core
from vllm_metal.torch_sampling_metadata import SampledRequest, sampling_metadata

VOCAB = 1003  # not a multiple of a vector or of a mask's word
MODES = ("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits")
THINK, END = [11], [12, 13]
REASONING = {"reasoning_start_token_ids": THINK, "reasoning_end_token_ids": END}
SCORE = {"atol": 2e-5, "rtol": 1e-5}


@dataclass
class Row:
    """One request at one moment."""

    params: SamplingParams
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    bitmask: np.ndarray | None = None  # int32 [ceil(VOCAB / 32)]


def row(*, bad_words: list[list[int]] | None = None, **options: Any) -> Row:
    fields = {
        name: options.pop(name) for name in ("prompt", "output", "bitmask") if name in options
    }
    params = SamplingParams(max_tokens=None, **options)
    params._bad_words_token_ids = bad_words
    return Row(params, **fields)


def grammar(token_ids: list[int]) -> np.ndarray:
    words = np.zeros((VOCAB + 31) // 32, np.uint32)
    for token_id in token_ids:
        words[token_id // 32] |= np.uint32(1 << token_id % 32)
    return words.view(np.int32)


def random_logits(num_rows: int, seed: int, deviation: float = 3.0) -> torch.Tensor:
    return deviation * torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def torch_sample(
    rows: list[Row], logits: torch.Tensor, mode: str, num_logprobs: int = -1
) -> tuple[list[int], LogprobsTensors]:
    """vLLM's tokens and, for num_logprobs -1, the scores of the whole vocabulary by id."""
    logits = logits.clone()
    masked = [str(i) for i, r in enumerate(rows) if r.bitmask is not None]
    if masked:
        apply_grammar_bitmask(
            SimpleNamespace(scheduled_spec_decode_tokens={}),
            GrammarOutput(masked, np.stack([rows[int(i)].bitmask for i in masked])),
            SimpleNamespace(req_ids=[str(i) for i in range(len(rows))]),
            logits,
        )
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=len(rows)))
    cpu = torch.device("cpu")
    update = BatchUpdate(
        len(rows), [], [(i, r.params, r.prompt, r.output) for i, r in enumerate(rows)], []
    )
    processors = [
        kind(config, cpu, False)
        for kind in (MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)
    ]
    for processor in processors:
        processor.update_state(update)
    thinking = ThinkingBudgetStateHolder(SimpleNamespace(**REASONING), len(rows), 0, cpu, False)
    thinking.sync_batch(update)
    metadata = sampling_metadata(
        [SampledRequest(r.params, r.prompt, r.output, seed=0) for r in rows],
        VOCAB,
        LogitsProcessors(processors),
        thinking,
    )
    metadata = replace(metadata, max_num_logprobs=num_logprobs)
    result = Sampler(mode)(logits, metadata)
    return result.sampled_token_ids[:, 0].tolist(), result.logprobs_tensors


def core_params(r: Row, num_logprobs: int | None) -> _core.SamplingParams:
    p = r.params
    return _core.SamplingParams(
        temperature=p.temperature,
        top_p=p.top_p,
        top_k=p.top_k,
        min_p=p.min_p,
        presence_penalty=p.presence_penalty,
        frequency_penalty=p.frequency_penalty,
        repetition_penalty=p.repetition_penalty,
        logit_bias=p.logit_bias or {},
        allowed_token_ids=p.allowed_token_ids,
        bad_words_token_ids=p.bad_words_token_ids or [],
        min_tokens=p.min_tokens,
        all_stop_token_ids=sorted(p.all_stop_token_ids),
        has_grammar=p.structured_outputs is not None,
        thinking_token_budget=p.thinking_token_budget,
        num_logprobs=num_logprobs,
    )


def core_sample(
    rows: list[Row],
    logits: torch.Tensor,
    mode: str = "raw_logprobs",
    num_logprobs: int | None = -1,
    seeds: list[int] | None = None,
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
    config = _core.SamplerConfig(VOCAB, logprobs_mode=mode, **REASONING)
    states = [
        _core.SamplingState(
            core_params(r, num_logprobs), seed, config, r.prompt + r.output, len(r.output)
        )
        for r, seed in zip(rows, seeds or range(len(rows)), strict=True)
    ]
    full = np.full((VOCAB + 31) // 32, -1, np.int32)
    bitmask = np.stack([full if r.bitmask is None else r.bitmask for r in rows])
    return _core.sample(config, logits, states, bitmask)


def core_scores(rows: list[Row], logits: torch.Tensor, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Our tokens and the scores of the whole vocabulary by id, once their order is checked."""
    tokens, (ids, scores, ranks) = core_sample(rows, logits, mode)
    by_id = np.full(logits.shape, np.nan, np.float32)
    np.put_along_axis(by_id, ids[:, 1:].astype(np.int64), scores[:, 1:], axis=1)
    assert not np.isnan(by_id).any()
    assert (scores[:, 1:-1] >= scores[:, 2:]).all()
    drawn = by_id[np.arange(len(rows)), tokens]
    assert (ids[:, 0] == tokens).all()
    assert (scores[:, 0] == drawn).all()
    assert (ranks == (by_id >= drawn[:, None]).sum(axis=1)).all()
    assert (drawn > -np.inf).all() or not mode.startswith("processed")
    return tokens, by_id


def border_tokens(r: Row, logits: np.ndarray) -> set[int]:
    """Tokens so close to the border of top_p or min_p that float32 may decide either way.

    `logits` are vLLM's processed logits of the row without these two filters.
    """
    kept = np.exp((logits - logits.max()).astype(np.float64))
    near_min_p = np.abs(kept - r.params.min_p) < 1e-5 * r.params.min_p
    kept[kept < r.params.min_p * (1 - 1e-5)] = 0
    order = np.argsort(-kept, kind="stable")
    before = np.cumsum(kept[order]) / kept.sum() - kept[order] / kept.sum()
    near_top_p = np.abs(before - r.params.top_p) < 2e-6
    return set(np.flatnonzero(near_min_p)) | set(order[near_top_p])


def assert_same_scores(rows: list[Row], logits: torch.Tensor, mode: str) -> None:
    """Compare every score of every row, but for tokens at the borders of filters."""
    expected = torch_sample(rows, logits, mode)[1].logprobs.numpy()
    _, actual = core_scores(rows, logits, mode)
    unfiltered = [replace(r, params=with_options(r.params, top_p=1.0, min_p=0.0)) for r in rows]
    before_filters = torch_sample(unfiltered, logits, "processed_logits")[1].logprobs.numpy()
    for i, r in enumerate(rows):
        differs = (actual[i] == -np.inf) != (expected[i] == -np.inf)
        if differs.any():
            assert mode.startswith("processed"), (i, r.params)
            assert set(np.flatnonzero(differs)) <= border_tokens(r, before_filters[i]), (
                i,
                r.params,
            )
        same = ~differs
        np.testing.assert_allclose(
            actual[i][same], expected[i][same], err_msg=f"{i} {r.params}", **SCORE
        )


def with_options(params: SamplingParams, **options: Any) -> SamplingParams:
    changed = params.clone()
    for name, value in options.items():
        setattr(changed, name, value)
    return changed


HISTORY = {"prompt": [1, 2, 3, 3, 40], "output": [5, 5, 5, 3, 77, 12]}
SINGLE = {
    "plain": [row()],
    "temperature": [row(temperature=t) for t in (0.0, 0.2, 0.7, 1.5, 2.0)],
    "top_k": [row(top_k=k) for k in (1, 2, 50, VOCAB - 1, VOCAB, VOCAB + 5)],
    "top_p": [row(top_p=p) for p in (1e-6, 0.1, 0.5, 0.9, 0.99, 0.9999)],
    "min_p": [row(min_p=p) for p in (1e-4, 0.01, 0.1, 0.5, 1.0)],
    "filters": [row(temperature=0.8, top_k=k, top_p=0.9, min_p=0.01) for k in (5, 40, 400)],
    "presence_penalty": [row(presence_penalty=x, **HISTORY) for x in (-2.0, 0.5, 2.0)],
    "frequency_penalty": [row(frequency_penalty=x, **HISTORY) for x in (-2.0, 0.5, 2.0)],
    "repetition_penalty": [row(repetition_penalty=x, **HISTORY) for x in (0.5, 1.1, 3.0)],
    "logit_bias": [row(logit_bias={0: 3.5, 7: -100.0, VOCAB - 1: 100.0}), row(logit_bias={5: 4.0})],
    "allowed_token_ids": [
        row(allowed_token_ids=[3]),
        row(allowed_token_ids=[0, 31, 32, VOCAB - 1]),
    ],
    "bad_words": [
        row(bad_words=[[4], [12, 6], [77, 12, 8], [5, 12, 9], [77, 3]], **HISTORY),
        row(bad_words=[[4], [5, 6]]),
    ],
    "min_tokens": [row(min_tokens=n, stop_token_ids=[2, 500], **HISTORY) for n in (6, 7)],
    "grammar": [
        row(bitmask=grammar([0, 31, 32, 33, VOCAB - 1])),
        row(bitmask=grammar(list(range(7, VOCAB)))),
        row(temperature=0.0, bitmask=grammar([9])),
    ],
    "grammar at its end": [
        row(
            min_tokens=9,
            stop_token_ids=[6, 7],
            structured_outputs=StructuredOutputsParams(regex="a"),
            bitmask=grammar(ids),
        )
        for ids in ([6], [6, 8])
    ],
    "thinking_token_budget": [
        row(thinking_token_budget=0, prompt=[1, *THINK]),
        row(thinking_token_budget=3, prompt=[1, *THINK], output=[]),
        row(thinking_token_budget=3, prompt=[1, *THINK, 5, 5, 5]),
        row(thinking_token_budget=3, prompt=[*THINK, 5, *END]),
        row(thinking_token_budget=0, prompt=[5]),
    ],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SINGLE)
def test_each_parameter_scores_as_vllm_does(name: str, mode: str) -> None:
    rows = SINGLE[name]
    for seed in range(3):
        assert_same_scores(rows, random_logits(len(rows), seed), mode)


def random_row(rng: random.Random) -> Row:
    maybe = lambda: rng.random() < 0.3  # noqa: E731
    ids = lambda count: rng.sample(range(VOCAB), count)  # noqa: E731
    options: dict[str, Any] = {"temperature": rng.choice([0.0, 0.5, 0.9, 1.0, 1.6])}
    random_options = {
        "top_k": rng.randint(1, 200),
        "top_p": rng.uniform(0.3, 0.999),
        "min_p": rng.uniform(0.0, 0.2),
        "presence_penalty": rng.uniform(-2, 2),
        "frequency_penalty": rng.uniform(-2, 2),
        "repetition_penalty": rng.uniform(0.5, 2),
        "logit_bias": {token_id: rng.uniform(-9, 9) for token_id in ids(5)},
        "allowed_token_ids": ids(rng.randint(300, 900)),
        "min_tokens": rng.randint(0, 9),
        "stop_token_ids": ids(3),
        "bad_words": [ids(1), [5, *ids(1)], [6, *ids(2)]],
        "bitmask": grammar(ids(600)),
        "thinking_token_budget": rng.randint(0, 5),
    }
    options |= {name: value for name, value in random_options.items() if maybe()}
    prompt = [rng.randrange(20, 60) for _ in range(rng.randint(1, 30))]
    if maybe():
        prompt += [*THINK, *[rng.randrange(20, 60) for _ in range(rng.randint(0, 4))]]
    output = [rng.randrange(20, 60) for _ in range(rng.randint(0, 10))]
    if "thinking_token_budget" in options:
        output = []  # vLLM counts from the prompt on and looks at the output from draw to draw
    return row(**options, prompt=prompt, output=[*output, 5] if output else [])


@pytest.mark.parametrize("mode", MODES)
def test_mixed_batches_score_as_vllm_does(mode: str) -> None:
    rng = random.Random(17)
    for seed in range(12):
        assert_same_scores([random_row(rng) for _ in range(24)], random_logits(24, seed), mode)


def test_greedy_tokens_are_those_of_vllm() -> None:
    rng = random.Random(3)
    for seed in range(10):
        rows = [random_row(rng) for _ in range(32)]
        rows = [replace(r, params=with_options(r.params, temperature=0.0)) for r in rows]
        logits = random_logits(32, seed)
        expected, _ = torch_sample(rows, logits, "raw_logprobs")
        assert core_sample(rows, logits, num_logprobs=None)[0].tolist() == expected


@pytest.mark.parametrize("mode", MODES)
def test_greedy_logprobs_and_ranks_are_those_of_vllm(mode: str) -> None:
    rows = [
        row(temperature=0.0, repetition_penalty=1.5, **HISTORY),
        row(temperature=0.0, logit_bias={6: 9.0}),
        row(temperature=0.0),
        row(temperature=0.0, bitmask=grammar(list(range(100)))),
    ]
    logits = random_logits(len(rows), 5)
    tokens, expected = torch_sample(rows, logits, mode, num_logprobs=20)
    actual_tokens, (ids, scores, ranks) = core_sample(rows, logits, mode, num_logprobs=20)
    assert actual_tokens.tolist() == tokens
    assert ids.tolist() == expected.logprob_token_ids.tolist()
    assert ranks.tolist() == expected.selected_token_ranks.tolist()
    np.testing.assert_allclose(scores, expected.logprobs.numpy(), **SCORE)


def test_a_thinking_budget_forces_the_tokens_that_vllm_forces() -> None:
    """Greedy, draw by draw; vLLM's state is made anew each time, so only prompts hold marks."""
    for budget in (1, 2, 4):
        for prompt in ([1, *THINK], [1, *THINK, 5], [1, *THINK, 5, 5, 5, 5]):
            r = row(temperature=0.0, thinking_token_budget=budget, prompt=prompt)
            expected = vllm_thinking(r, num_tokens=9)
            config = _core.SamplerConfig(VOCAB, **REASONING)
            state = _core.SamplingState(core_params(r, None), 0, config, prompt, 0)
            actual = [
                int(_core.sample(config, random_logits(1, step), [state])[0][0])
                for step in range(9)
            ]
            assert actual == expected, (budget, prompt)
            assert END[0] in actual


def vllm_thinking(r: Row, num_tokens: int) -> list[int]:
    """Greedy tokens with the one holder of the request that a runner keeps."""
    holder = ThinkingBudgetStateHolder(
        SimpleNamespace(**REASONING), 1, 0, torch.device("cpu"), False
    )
    output: list[int] = []
    holder.sync_batch(BatchUpdate(1, [], [(0, r.params, r.prompt, output)], []))
    for step in range(num_tokens):
        logits = random_logits(1, step)
        holder.update_state([output], None)
        output.append(int(holder.apply_to_logits(logits, False, None).argmax()))
    return output


DRAWN = [
    row(),
    row(temperature=0.6),
    row(top_k=12),
    row(temperature=1.3, top_p=0.8),
    row(min_p=0.05),
    row(temperature=0.9, top_k=30, top_p=0.95, min_p=0.01, frequency_penalty=0.7, **HISTORY),
    row(allowed_token_ids=list(range(0, VOCAB, 7))),
    row(bitmask=grammar(list(range(3, VOCAB, 5)))),
]


@pytest.mark.parametrize("number", range(len(DRAWN)))
def test_draws_follow_vllms_distribution(number: int) -> None:
    """Pearson's chi-square; tokens expected fewer than 10 times are counted together."""
    r = DRAWN[number]
    draws = 16_384
    logits = random_logits(1, 31)
    expected = torch_sample([r], logits, "processed_logprobs")[1].logprobs[0].double().exp()
    expected = (expected / expected.sum()).numpy() * draws
    counts = np.zeros(VOCAB)
    for start in range(0, draws, 1024):
        seeds = [1_000_003 * (start + i) for i in range(1024)]
        tokens, _ = core_sample([r] * 1024, logits.repeat(1024, 1), num_logprobs=None, seeds=seeds)
        counts += np.bincount(tokens, minlength=VOCAB)
    assert counts[expected == 0].sum() == 0
    often = expected >= 10
    pairs = [*zip(counts[often], expected[often], strict=True)]
    if expected[~often].sum() >= 10:
        pairs.append((counts[~often].sum(), expected[~often].sum()))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    degrees = len(pairs) - 1
    assert degrees > 3
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5  # mean and five deviations


def test_a_seeded_request_draws_the_same_alone_and_in_any_batch() -> None:
    rng = random.Random(8)
    rows = [random_row(rng) for _ in range(20)]
    logits = random_logits(20, 1)
    seeds = [rng.getrandbits(64) for _ in rows]
    together, _ = core_sample(rows, logits, num_logprobs=None, seeds=seeds)
    again, _ = core_sample(
        rows[::-1], logits.flip(0).contiguous(), num_logprobs=None, seeds=seeds[::-1]
    )
    assert again[::-1].tolist() == together.tolist()
    for i, r in enumerate(rows):
        alone, _ = core_sample([r], logits[i : i + 1], num_logprobs=5, seeds=[seeds[i]])
        assert alone[0] == together[i]


def test_seeds_and_places_in_the_output_change_the_draw() -> None:
    logits = random_logits(1, 2, deviation=0.5).repeat(64, 1)
    by_seed, _ = core_sample([row()] * 64, logits, num_logprobs=None)
    assert len(set(by_seed.tolist())) > 48
    outputs = [row(output=[1] * i) for i in range(64)]
    by_place, _ = core_sample(outputs, logits, num_logprobs=None, seeds=[5] * 64)
    assert len(set(by_place.tolist())) > 48
    config = _core.SamplerConfig(VOCAB)
    state = _core.SamplingState(_core.SamplingParams(), 5, config)
    one_by_one = [int(_core.sample(config, logits[:1], [state])[0][0]) for _ in range(64)]
    assert one_by_one == by_place.tolist()
    assert state.num_output_tokens == 64
