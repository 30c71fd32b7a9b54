# SPDX-License-Identifier: Apache-2.0
"""Every architecture against transformers on tiny random weights."""

import numpy as np
import pytest
import torch
from vllm_metal import _core
from vllm_metal.selftest.models_checks import RELATIVE_TOLERANCE

from tests.parity.architectures import ROWS, Row
from tests.parity.pair import Pair, random_tokens, relative_error

FLOAT32 = RELATIVE_TOLERANCE["float32"]
every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def test_every_architecture_has_a_row():
    assert sorted({row.architecture for row in ROWS}) == sorted(_core.supported_architectures())


@every_row
@pytest.mark.parametrize("length", [1, 2, 17, 90])
def test_whole_prompt(pairs, row: Row, length: int):
    pair = pairs(row)
    tokens = random_tokens(length, length, pair.vocab_size)
    requests = pair.core()
    requests.add("r", tokens)
    logits = requests.step({"r": length})["r"]
    assert relative_error(logits, pair.reference_logits(tokens)[-1]) <= FLOAT32


@every_row
@pytest.mark.parametrize("chunk", [1, 7, 16])
def test_prompt_in_chunks(pairs, row: Row, chunk: int):
    pair = pairs(row)
    tokens = random_tokens(3, 50, pair.vocab_size)
    requests = pair.core()
    requests.add("r", tokens)
    logits = {}
    for begin in range(0, 50, chunk):
        assert not logits, "sampled before the end of the prompt"
        logits = requests.step({"r": min(chunk, 50 - begin)})
    assert relative_error(logits["r"], pair.reference_logits(tokens)[-1]) <= FLOAT32


def stepwise_reference(pair: Pair, tokens: list[int], prompt_len: int) -> np.ndarray:
    """transformers' logits with its own cache, a token at a time after the prompt."""
    pair.reset_reference()
    rows, cache = [], None
    with torch.no_grad():
        for ids in [tokens[:prompt_len], *([token] for token in tokens[prompt_len:])]:
            out = pair.reference(torch.tensor([ids]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1].numpy())
    return np.stack(rows)


@every_row
def test_step_by_step(pairs, row: Row):
    pair = pairs(row)
    tokens = random_tokens(4, 60, pair.vocab_size)
    expected = stepwise_reference(pair, tokens, 20)
    requests = pair.core()
    requests.add("r", tokens[:20])
    for index, length in enumerate(range(20, 61)):
        logits = requests.step({"r": 20 if length == 20 else 1})["r"]
        assert relative_error(logits, expected[index]) <= FLOAT32, f"after {length} tokens"
        if length < 60:
            requests.force("r", tokens[: length + 1])


@every_row
def test_batched(pairs, row: Row):
    """Chunks and decodes of many requests in one step; each as transformers computes it alone."""
    pair = pairs(row)
    prompts = {f"r{i}": random_tokens(i, 1 + 11 * i, pair.vocab_size) for i in range(8)}
    requests = pair.core()
    results: dict[str, np.ndarray] = {}
    names = list(prompts)
    for name in names:
        requests.add(name, prompts[name])
    # Half of them start first, so that their decodes meet the others' prompts.
    results |= requests.step({name: len(prompts[name]) for name in names[::2]})
    while any(requests.computed[name] < len(prompts[name]) for name in names):
        counts = dict.fromkeys(names[::2], 1)
        for name in names[1::2]:
            left = len(prompts[name]) - requests.computed[name]
            counts[name] = min(left, 13) if left > 0 else 1
        for name, logits in requests.step(counts).items():
            results.setdefault(name, logits)
    for name in names:
        assert relative_error(results[name], pair.reference_logits(prompts[name])[-1]) <= FLOAT32, (
            name
        )


@every_row
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(pairs, row: Row, dtype: str):
    pair = pairs(row)
    tokens = random_tokens(5, 40, pair.vocab_size)
    requests = pair.core(dtype)
    requests.add("r", tokens)
    logits = requests.step({"r": 40})["r"]
    assert relative_error(logits, pair.reference_logits(tokens)[-1]) <= RELATIVE_TOLERANCE[dtype]
