# SPDX-License-Identifier: Apache-2.0
"""Scores of prompts through vLLM's engine on the real core, compared with transformers'."""

import numpy as np
import pytest
import torch
from vllm import LLM, SamplingParams

PROMPTS = [[3 + (11 * i + 7 * length) % 90 for i in range(length)] for length in (1, 2, 33, 75)]
CHUNKS = {"max_num_batched_tokens": 32, "max_model_len": 96, "num_gpu_blocks_override": 40}


@pytest.fixture(scope="module")
def expected(tiny_llama):
    """Log probabilities [prompt_len - 1, vocab_size] of the tokens after each position."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)

    def of(prompt):
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0]
        return logits.log_softmax(-1).numpy()[:-1]

    return of


@pytest.fixture
def make_engine(tiny_llama):
    engines = []

    def make(**arguments):
        engines.append(LLM(str(tiny_llama), dtype="float32", **CHUNKS, **arguments))
        return engines[-1]

    yield make
    for engine in engines:
        engine.llm_engine.engine_core.shutdown()


def generate(llm, params):
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    return llm.generate(prompts, params, use_tqdm=False)


def test_over_chunks_and_beside_requests_without(make_engine, expected):
    params = [SamplingParams(max_tokens=2, prompt_logprobs=count) for count in (3, 0, 5, None)]
    outputs = generate(make_engine(), params)
    for output, prompt, count in zip(outputs, PROMPTS, (3, 0, 5, None), strict=True):
        if count is None:
            assert output.prompt_logprobs is None
            continue
        first, *scores = output.prompt_logprobs
        assert first is None
        rows = expected(prompt)
        assert len(scores) == len(rows)
        for score, row, token in zip(scores, rows, prompt[1:], strict=True):
            best = set(np.argsort(-row)[:count].tolist())
            assert set(score) == best | {token}
            for token_id, logprob in score.items():
                assert logprob.logprob == pytest.approx(row[token_id], abs=1e-4)
            assert score[token].rank == 1 + (row > row[token]).sum()


def test_of_given_tokens_in_the_second_dialect(make_engine, expected, monkeypatch):
    """vLLM's front end takes them where it believes in its second model runner."""
    import vllm.config.vllm

    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", True)
    llm = make_engine()
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    prompt, start = PROMPTS[3], 10
    token_ids = [[token, 4, -1] for token in prompt[start + 1 :]]
    params = SamplingParams(
        max_tokens=2, prompt_logprob_token_ids=np.array(token_ids), prompt_logprob_start=start
    )
    (output,) = llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)
    scores = np.asarray(output.prompt_token_id_logprobs)
    rows = expected(prompt)[start:]
    assert scores.shape == (len(prompt) - 1 - start, 3)
    for score, row, (token, other, _) in zip(scores, rows, token_ids, strict=True):
        assert score[:2] == pytest.approx([row[token], row[other]], abs=1e-4)
        assert score[2] == -np.inf
