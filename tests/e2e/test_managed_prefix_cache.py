# SPDX-License-Identifier: Apache-2.0
"""The prefix cache of the MLX-managed KV cache, on the real model: answers are those without it.

A salt of its own keeps a request from what is cached; the judge of both is transformers.
"""

import itertools

import pytest
from vllm import SamplingParams

BLOCK_SIZE = 16
NUM_TOKENS = 16
TOLERANCE = 2e-4  # of logprobs: products round by the number of rows computed together

_salts = itertools.count()


@pytest.fixture(scope="module")
def engine(default_model):
    from vllm import LLM

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_METAL_PREFIX_CACHE", "1")
        engine = LLM(
            str(default_model),
            dtype="float32",
            max_model_len=2048,
            kv_cache_memory_bytes=1 << 30,
            max_num_batched_tokens=256,  # long prompts come in chunks
            disable_log_stats=False,
        )
        yield engine
        engine.llm_engine.engine_core.shutdown()


@pytest.fixture(autouse=True)
def nothing_cached(engine):
    assert engine.reset_prefix_cache()


def prompt(seed, length):
    return [1000 + (7919 * seed + 31 * i) % 40_000 for i in range(length)]


def ask(engine, *prompts, salt=None, **options):
    params = {"temperature": 0.0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "logprobs": 3}
    asked = [{"prompt_token_ids": tokens} for tokens in prompts]
    if salt is not None:
        asked = [one | {"cache_salt": salt} for one in asked]
    return engine.generate(asked, SamplingParams(**params | options), use_tqdm=False)


def without(engine, *prompts, **options):
    outputs = ask(engine, *prompts, salt=f"only {next(_salts)}", **options)
    assert [output.num_cached_tokens for output in outputs] == [0] * len(outputs)
    return outputs


def tokens_of(output):
    return list(output.outputs[0].token_ids)


def check_same(output, other):
    assert tokens_of(output) == tokens_of(other)
    for one, two in zip(output.outputs[0].logprobs, other.outputs[0].logprobs, strict=True):
        assert list(one) == list(two)
        for token, logprob in one.items():
            assert logprob.logprob == pytest.approx(two[token].logprob, abs=TOLERANCE)


def hits_of(length):
    """Tokens of a known beginning that need not be computed: whole blocks, never the last one."""
    return (length - 1) // BLOCK_SIZE * BLOCK_SIZE


@pytest.mark.parametrize("length", [15, 16, 17, 33, 400])
def test_a_prompt_that_comes_again(engine, reference, length):
    tokens = prompt(length, length)
    (first,) = ask(engine, tokens)
    (again,) = ask(engine, tokens)
    assert (first.num_cached_tokens, again.num_cached_tokens) == (0, hits_of(length))
    check_same(again, first)
    assert tokens_of(again) == reference.choices(tokens, tokens_of(again)).token_ids


@pytest.mark.parametrize("common", [40, 511])
def test_prompts_with_a_common_beginning(engine, common):
    beginning = prompt(1, common)
    prompts = [beginning + prompt(10 + index, 5 + 40 * index) for index in range(4)]
    expected = [without(engine, tokens)[0] for tokens in prompts]
    ask(engine, beginning)
    for output, other in zip(ask(engine, *prompts), expected, strict=True):
        assert output.num_cached_tokens == common // BLOCK_SIZE * BLOCK_SIZE
        check_same(output, other)


def test_a_conversation_computes_what_is_new(engine, reference):
    """Of each turn the prompt and the answer before are there, but for a block's rest."""
    tokens = prompt(3, 100)
    for turn in range(3):
        (output,) = ask(engine, tokens)
        (other,) = without(engine, tokens)
        # New are the last token, drawn but not computed, and 18 others.
        known = (len(tokens) - 19) // BLOCK_SIZE * BLOCK_SIZE if turn else 0
        assert output.num_cached_tokens == known
        check_same(output, other)
        answer = tokens_of(output)
        said, tokens = tokens, tokens + answer + prompt(20 + turn, 18)
    assert answer == reference.choices(said, answer).token_ids


def test_an_aborted_request_leaves_what_it_computed(engine):
    tokens = prompt(4, 600)
    core = engine.llm_engine
    core.add_request("aborted", {"prompt_token_ids": tokens}, SamplingParams(max_tokens=4))
    core.step()  # a chunk of 256 tokens
    core.abort_request(["aborted"])
    (other,) = without(engine, tokens)
    (output,) = ask(engine, tokens)
    assert output.num_cached_tokens >= 256
    assert output.num_cached_tokens % BLOCK_SIZE == 0
    check_same(output, other)


def test_salts_keep_prefixes_apart(engine):
    tokens = prompt(5, 64)
    salts = ("a", "b", "a", None)
    outputs = [ask(engine, tokens, salt=salt)[0] for salt in salts]
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 48, 0]
    for output in outputs[1:]:
        check_same(output, outputs[0])


def test_scores_of_a_prompt_are_computed_whole(engine):
    tokens = prompt(6, 100)
    first, again = (ask(engine, tokens, prompt_logprobs=1)[0] for _ in range(2))
    assert again.num_cached_tokens == 0
    assert len(first.prompt_logprobs) == len(again.prompt_logprobs) == 100
    (output,) = ask(engine, tokens)  # what they computed is there for others
    assert output.num_cached_tokens == hits_of(100)
    check_same(output, first)


def test_counters_and_reset(engine):
    def counters():
        names = ("external_prefix_cache_queries", "external_prefix_cache_hits")
        metrics = engine.get_metrics()
        return [sum(m.value for m in metrics if m.name == f"vllm:{name}") for name in names]

    before = counters()
    tokens = prompt(7, 100)
    for _ in range(3):
        ask(engine, tokens)
    after = counters()
    assert [now - then for now, then in zip(after, before, strict=True)] == [300, 2 * hits_of(100)]
    assert engine.reset_prefix_cache()
    assert ask(engine, tokens)[0].num_cached_tokens == 0
