# SPDX-License-Identifier: Apache-2.0
"""Custom logits processors in vLLM's engine on the real core, beside requests of the core."""

import pytest
import torch
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from tests.plugin.tiny_model import EOS

TOKENS = 12


class Force(AdapterLogitsProcessor):
    """Forces the tokens of extra_args["force"], one after the other."""

    @classmethod
    def validate_params(cls, params):
        if not isinstance((params.extra_args or {}).get("force", []), list):
            raise ValueError("force must be a list")

    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        tokens = (params.extra_args or {}).get("force")
        if not tokens:
            return None
        if tokens == ["refuse"]:
            raise RuntimeError("told to refuse")

        def force(output_token_ids, logits):
            token = tokens[len(output_token_ids) % len(tokens)]
            if token == "fail":
                raise RuntimeError("told to fail")
            forced = torch.full_like(logits, -torch.inf)
            forced[token] = 0.0
            return forced

        return force


@pytest.fixture(scope="module")
def llm(tiny_llama):
    engine = LLM(
        str(tiny_llama),
        dtype="float32",
        logits_processors=[Force],
        num_gpu_blocks_override=24,
        max_model_len=96,
        max_num_batched_tokens=32,
        max_num_seqs=8,
    )
    yield engine
    engine.llm_engine.engine_core.shutdown()


def prompt(request, length=20):
    return {"prompt_token_ids": [3 + (7 * request + 5 * i) % 90 for i in range(length)]}


def params(force=None, **changes):
    extra_args = None if force is None else {"force": force}
    return SamplingParams(
        **{
            "temperature": 0.0,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "extra_args": extra_args,
            **changes,
        }
    )


def generate(llm, prompts, sampling):
    return [output.outputs[0] for output in llm.generate(prompts, sampling, use_tqdm=False)]


def test_mixed_batches_under_pressure(llm):
    """24 blocks for 16 requests of up to 4 blocks: they wait, are cut into chunks and preempted."""
    natural = [generate(llm, [prompt(i)], params())[0].token_ids for i in range(8)]
    forced = [[10 + i, 40 + i, 70] for i in range(8)]
    outputs = generate(
        llm,
        [prompt(i % 8, 20) for i in range(16)],
        [params(forced[i] if i < 8 else None) for i in range(16)],
    )
    for i in range(8):
        assert list(outputs[i].token_ids) == forced[i] * 4
        assert outputs[8 + i].token_ids == natural[i]


def test_logprobs_of_a_mixed_batch(llm):
    outputs = generate(
        llm,
        [prompt(1), prompt(1), prompt(1)],
        [params([50], logprobs=1), params(logprobs=2), params([51])],
    )
    alone = generate(llm, [prompt(1)], params(logprobs=2))[0]
    for position, expected in zip(outputs[1].logprobs, alone.logprobs, strict=True):
        assert position == expected
    # Raw: what the model gave the token that was forced, and its own favourite.
    first = outputs[0].logprobs[0]
    assert set(first) == {50, alone.token_ids[0]}
    assert first[50].rank > 1
    assert first[alone.token_ids[0]].logprob == pytest.approx(
        alone.logprobs[0][alone.token_ids[0]].logprob, abs=1e-5
    )
    assert outputs[2].logprobs is None


def test_with_a_grammar(llm):
    choice = StructuredOutputsParams(choice=["w5", "w6"])
    outputs = generate(
        llm,
        [prompt(2), prompt(3)],
        [
            params([5, EOS], structured_outputs=choice, ignore_eos=False),
            params(structured_outputs=choice, ignore_eos=False),
        ],
    )
    assert list(outputs[0].token_ids) == [5, EOS]
    assert list(outputs[1].token_ids) in ([5, EOS], [6, EOS])
    assert [output.finish_reason for output in outputs] == ["stop", "stop"]


def test_a_processor_that_fails_ends_its_requests_only(llm):
    natural = generate(llm, [prompt(4)], params())[0].token_ids
    outputs = generate(
        llm,
        [prompt(4), prompt(5), prompt(4)],
        [params(), params([7, 8, "fail"]), params(["refuse"])],
    )
    assert outputs[0].token_ids == natural
    assert [output.finish_reason for output in outputs] == ["length", "error", "error"]
    assert list(outputs[1].token_ids) == [7, 8]
    assert list(outputs[2].token_ids) == []
    assert generate(llm, [prompt(4)], params())[0].token_ids == natural


def test_bad_arguments_are_refused_before_they_reach_the_engine(llm):
    with pytest.raises(VLLMValidationError, match="force must be a list"):
        generate(llm, [prompt(6)], params("x"))
