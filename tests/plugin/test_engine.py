# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine on the fake core, which checks every step and whose tokens are predictable."""

import random

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.plugin import fake_core as model
from tests.plugin.conftest import one_engine_at_a_time
from tests.plugin.fake_core import NAN_TOKEN
from tests.plugin.tiny_model import EOS

# Room for 39 blocks (block 0 is vLLM's own) of 16 tokens: the requests below fight for it.
SMALL_CACHE = {
    "num_gpu_blocks_override": 40,
    "max_model_len": 256,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 16,
}


@pytest.fixture(scope="module")
def engines(fake_core, tiny_llama):
    """Make engines, one at a time alive."""
    with one_engine_at_a_time(tiny_llama) as make:
        yield make


@pytest.fixture(scope="module")
def small_engine(engines):
    return engines(**SMALL_CACHE)


def token_prompts(prompts):
    return [{"prompt_token_ids": prompt} for prompt in prompts]


def random_prompts(count, seed):
    """Make prompts of up to 150 tokens, a third of which share their first 50."""
    generator = random.Random(seed)

    def words(number):
        return [generator.randrange(model.FIRST_TOKEN, NAN_TOKEN) for _ in range(number)]

    prefix = words(50)
    return [
        prefix + words(generator.randrange(1, 100))
        if index % 3 == 0
        else words(generator.randrange(1, 150))
        for index in range(count)
    ]


def check_under_pressure(llm, num_requests=40):
    """Chunks, continuous batches and preemptions must not change a token."""
    prompts = random_prompts(num_requests, seed=num_requests)
    params = SamplingParams(max_tokens=60, temperature=0.0, ignore_eos=True)
    outputs = llm.generate(token_prompts(prompts), params, use_tqdm=False)
    for output, prompt in zip(outputs, prompts, strict=True):
        assert list(output.outputs[0].token_ids) == model.generate(prompt, 60)
    counts = model.ModelRunner.instances[-1].counts
    assert counts.chunks > 10
    assert counts.preemptions > 10
    assert counts.largest_batch > 4


def test_exact_under_pressure(small_engine):
    assert small_engine.llm_engine.vllm_config.scheduler_config.async_scheduling
    check_under_pressure(small_engine)


def test_nothing_is_left_of_finished_requests(small_engine):
    runner = model.ModelRunner.instances[-1]
    small_engine.generate(token_prompts([[5, 6]]), SamplingParams(max_tokens=1), use_tqdm=False)
    # The core hears of the last request with the next step at the latest.
    small_engine.llm_engine.step()
    assert runner.requests == {}


def test_logprobs_of_a_mixed_batch(small_engine):
    prompts = [[9, 10], [11] * 100, [12, 13]]
    params = [
        SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True, logprobs=number)
        for number in (1, 4, None)
    ]
    outputs = small_engine.generate(token_prompts(prompts), params, use_tqdm=False)
    for output, prompt, number in zip(outputs, prompts, (1, 4, None), strict=True):
        tokens = model.generate(prompt, 3)
        if number is None:
            assert output.outputs[0].logprobs is None
            continue
        for position, token in zip(output.outputs[0].logprobs, tokens, strict=True):
            expected = {token: -0.5} | {rank: -float(rank) for rank in range(1, number + 1)}
            assert {key: value.logprob for key, value in position.items()} == expected
            assert position[token].rank == 7


def test_nan_logits_end_the_request_and_only_that(small_engine):
    free_blocks = _free_blocks(small_engine)
    prompts = [[20, 21], [5] * 99 + [NAN_TOKEN], [22] * 50]
    outputs = small_engine.generate(
        token_prompts(prompts),
        SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True),
        use_tqdm=False,
    )
    assert [output.outputs[0].finish_reason for output in outputs] == ["length", "error", "length"]
    assert list(outputs[1].outputs[0].token_ids) == []
    for index in (0, 2):
        expected = model.generate(prompts[index], 8)
        assert list(outputs[index].outputs[0].token_ids) == expected
    assert _free_blocks(small_engine) == free_blocks


def _free_blocks(llm):
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def test_a_refused_request_leaves_the_engine_working(small_engine):
    with pytest.raises(VLLMValidationError, match="seed must fit"):
        small_engine.generate("w3 w4", SamplingParams(seed=2**63), use_tqdm=False)
    (output,) = small_engine.generate(
        "w3 w4", SamplingParams(max_tokens=3, temperature=0.0), use_tqdm=False
    )
    assert list(output.outputs[0].token_ids) == model.generate(output.prompt_token_ids, 3)


def test_sampling_parameters_reach_the_core(small_engine, monkeypatch):
    from vllm_metal import sampling

    seen = []
    to_core = sampling.to_core
    monkeypatch.setattr(
        sampling, "to_core", lambda params: seen.append(to_core(params)) or seen[-1]
    )
    small_engine.generate(
        "w3",
        SamplingParams(
            n=2, max_tokens=1, temperature=0.5, top_p=0.75, top_k=5, seed=11, logprobs=2
        ),
        use_tqdm=False,
    )
    # The request's own as it is checked, then those of its answers.
    assert [params.seed for params in seen] == [11, 11, 12]
    assert seen[1] == model.SamplingParams(
        temperature=0.5,
        top_p=0.75,
        top_k=5,
        seed=11,
        num_logprobs=2,
        all_stop_token_ids=[EOS],
    )


def test_the_core_is_told_what_the_engine_settled(engines, fake_core):
    engines(dtype="float16", hf_overrides={"rms_norm_eps": 0.5}, kv_cache_memory_bytes=1 << 20)
    runner = model.ModelRunner.instances[-1]
    assert runner.dtype == "float16"
    assert '"rms_norm_eps": 0.5' in runner.config_json
    # 2 layers × keys and values × 2 heads × 16 dimensions × 2 bytes = 256 bytes a token
    assert (runner.capacity, runner.block_size) == (1 << 12, 16)


def test_exact_with_synchronous_scheduling(engines):
    check_under_pressure(engines(**SMALL_CACHE, async_scheduling=False))


@pytest.mark.parametrize("async_scheduling", [False, True])
def test_exact_in_the_second_dialect(engines, monkeypatch, async_scheduling):
    """Where Triton has a driver, vLLM's scheduler resumes requests as new ones."""
    import vllm.config.vllm

    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", True)
    llm = engines(**SMALL_CACHE, async_scheduling=async_scheduling)
    assert llm.llm_engine.vllm_config.use_v2_model_runner
    check_under_pressure(llm)


@pytest.mark.parametrize("second_dialect", [False, True])
def test_exact_with_paged_attention(engines, monkeypatch, second_dialect):
    """The blocks of every request hold its tokens, whoever computed them."""
    import vllm.config.vllm

    monkeypatch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", "1")
    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", second_dialect)
    llm = engines(**SMALL_CACHE)
    assert llm.llm_engine.vllm_config.use_v2_model_runner == second_dialect
    check_under_pressure(llm)
    assert model.ModelRunner.instances[-1].counts.prefix_hits > 10


@pytest.mark.parametrize("async_scheduling", [False, True])
@pytest.mark.parametrize("second_dialect", [False, True])
def test_exact_with_the_prefix_cache(engines, monkeypatch, async_scheduling, second_dialect):
    """What is loaded was saved by another with the same tokens, or by the request itself."""
    import vllm.config.vllm

    monkeypatch.setattr(vllm.config.vllm, "HAS_TRITON", second_dialect)
    llm = engines(**SMALL_CACHE, async_scheduling=async_scheduling, enable_prefix_caching=True)
    assert llm.llm_engine.vllm_config.use_v2_model_runner == second_dialect
    check_under_pressure(llm)
    runner = model.ModelRunner.instances[-1]
    assert runner.counts.prefix_hits > 10
    assert runner.counts.resumed_hits > 5
    assert len(runner.prefix_cache.blocks) == runner.prefix_cache.num_blocks
