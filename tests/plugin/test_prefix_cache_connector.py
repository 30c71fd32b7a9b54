# SPDX-License-Identifier: Apache-2.0
"""The prefix cache's half in vLLM's scheduler, on the fake core, which checks what is copied.

test_engine.py has it under pressure, in both dialects of the scheduler.
"""

import pytest
from vllm import SamplingParams

from tests.plugin import fake_core as model
from tests.plugin.conftest import one_engine_at_a_time

BLOCK_SIZE = 16
GREEDY = {"temperature": 0.0, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(fake_core, tiny_llama):
    with one_engine_at_a_time(tiny_llama) as make:
        yield make(
            max_model_len=512,
            num_gpu_blocks_override=200,
            max_num_batched_tokens=64,
            enable_prefix_caching=True,
        )


@pytest.fixture(autouse=True)
def nothing_cached(engine):
    assert engine.reset_prefix_cache()


@pytest.fixture
def scheduler(engine):
    return engine.llm_engine.engine_core.engine_core.scheduler


def words(seed, number):
    count = model.NAN_TOKEN - model.FIRST_TOKEN
    return [model.FIRST_TOKEN + (seed * 7 + index * index * 5) % count for index in range(number)]


def ask(engine, *prompts, num_tokens=4, **options):
    params = SamplingParams(max_tokens=num_tokens, **GREEDY, **options)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = engine.generate(asked, params, use_tqdm=False)
    for output, prompt in zip(outputs, prompts, strict=True):
        if output.outputs[0].finish_reason == "length":
            assert list(output.outputs[0].token_ids) == model.generate(prompt, num_tokens)
    return outputs


def cached_tokens(engine, prompt):
    return ask(engine, prompt)[0].num_cached_tokens


def step_with(engine, prompts, do, num_tokens=40):
    """Answer prompts, calling `do(step number)` before each step."""
    core, answers = engine.llm_engine, {}
    params = SamplingParams(max_tokens=num_tokens, **GREEDY)
    for index, prompt in enumerate(prompts):
        core.add_request(str(index), {"prompt_token_ids": prompt}, params)
    for step in range(1000):
        do(step)
        for output in core.step():
            if output.finished:
                answers[int(output.request_id.split("-")[0])] = list(output.outputs[0].token_ids)
        if not core.has_unfinished_requests():
            break
    return answers


def test_a_prompt_larger_than_the_cache_is_cached_in_part(engine):
    prompt = words(1, 500)  # 31 blocks; the cache has 30
    assert ask(engine, prompt)[0].num_cached_tokens == 0
    assert cached_tokens(engine, prompt) == model.NUM_PREFIX_BLOCKS * BLOCK_SIZE


def test_the_least_recently_used_goes_first(engine):
    prompts = [words(seed, 12 * BLOCK_SIZE + 1) for seed in range(3)]  # 12 blocks each
    for prompt in prompts[:2]:
        ask(engine, prompt)
    assert cached_tokens(engine, prompts[0]) == 12 * BLOCK_SIZE
    ask(engine, prompts[2])  # of the second prompt's blocks 6 are left
    assert cached_tokens(engine, prompts[0]) == 12 * BLOCK_SIZE
    assert cached_tokens(engine, prompts[1]) == 6 * BLOCK_SIZE


def test_a_request_that_fails_leaves_its_prompt_only(engine):
    prompt = [*words(4, 31), model.NAN_TOKEN]
    (output,) = ask(engine, prompt)
    assert output.outputs[0].finish_reason == "error"
    assert cached_tokens(engine, words(4, 31)) == BLOCK_SIZE


def test_waiting_requests_do_not_count(engine, scheduler):
    """A request is looked up each time the scheduler thinks of it, and counted once."""
    ask(engine, words(5, 100))
    before = scheduler.max_num_active_reqs
    scheduler.max_num_active_reqs = 1
    try:
        outputs = ask(engine, *[words(5, 100 + index) for index in range(3)], num_tokens=20)
    finally:
        scheduler.max_num_active_reqs = before
    assert [output.num_cached_tokens for output in outputs] == [96, 96, 96]


@pytest.mark.parametrize("running_too", [False, True])
def test_a_reset_while_requests_run(engine, scheduler, running_too):
    prompts = [words(6, 90), words(6, 120), words(7, 50), words(6, 60)]

    def reset_now_and_then(step):
        if step % 9 == 8:
            assert scheduler.reset_prefix_cache(reset_running_requests=running_too)

    answers = step_with(engine, prompts, reset_now_and_then)
    assert answers == {index: model.generate(prompt, 40) for index, prompt in enumerate(prompts)}


def test_what_was_computed_before_a_reset_is_not_cached_after_it(engine, scheduler):
    prompt = words(8, 40)
    step_with(engine, [prompt], lambda step: step == 20 and scheduler.reset_prefix_cache())
    assert cached_tokens(engine, prompt) == 0


def test_no_prompt_is_read_from_it_for_its_scores(engine):
    prompt = words(9, 50)
    ask(engine, prompt)
    params = SamplingParams(max_tokens=1, skip_reading_prefix_cache=True, **GREEDY)
    (output,) = engine.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    assert output.num_cached_tokens == 0


def test_the_worker_needs_no_connector(engine):
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
    from vllm_metal.prefix_cache import MetalPrefixCacheConnector

    config = engine.llm_engine.vllm_config
    with pytest.raises(ValueError, match="without a connector"):
        MetalPrefixCacheConnector(config, KVConnectorRole.WORKER, None)
