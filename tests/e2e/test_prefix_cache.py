# SPDX-License-Identifier: Apache-2.0
"""Prompts that begin alike: what is cached and counted, and that answers do not change."""

import pytest

from tests.e2e.test_server import metrics, wait_until_idle

BLOCK_SIZE = 16
NUM_TOKENS = 24
TOLERANCE = 2e-4  # of logprobs: products round by the number of rows computed together


def prompt(seed, length):
    return [1000 + (7919 * seed + 31 * i) % 40_000 for i in range(length)]


def ask(complete, tokens, **options):
    return complete(tokens, max_tokens=NUM_TOKENS, logprobs=3, ignore_eos=True, **options)


def cached_tokens(response):
    return response.usage.prompt_tokens_details.cached_tokens


def check_same(response, other):
    one, two = response.choices[0], other.choices[0]
    assert one.token_ids == two.token_ids
    assert one.logprobs.token_logprobs == pytest.approx(two.logprobs.token_logprobs, abs=TOLERANCE)


def hits_of(length, kv_cache_mode):
    """Tokens of a known prefix that need not be computed: whole blocks, never the last token."""
    return length // BLOCK_SIZE * BLOCK_SIZE if kv_cache_mode == "paged" else 0


@pytest.mark.parametrize("length", [15, 16, 17, 33, 400])
def test_a_prompt_that_comes_again(complete, kv_cache_mode, length):
    """400 tokens are two chunks when they are computed, and one of a token or more when known."""
    tokens = prompt(length, length)
    first = ask(complete, tokens)
    again = ask(complete, tokens)
    assert cached_tokens(first) == 0
    assert cached_tokens(again) == hits_of(length - 1, kv_cache_mode)
    check_same(again, first)


def test_a_longer_prompt_with_the_same_beginning(complete, kv_cache_mode):
    beginning = prompt(1, 300)
    tokens = beginning + prompt(2, 40)
    without = ask(complete, tokens, cache_salt="others")
    ask(complete, beginning)
    response = ask(complete, tokens)
    assert cached_tokens(without) == 0
    assert cached_tokens(response) == hits_of(len(beginning), kv_cache_mode)
    check_same(response, without)


def test_generated_tokens_are_a_prefix_too(complete, kv_cache_mode):
    tokens = prompt(3, 20)
    answer = ask(complete, tokens).choices[0].token_ids
    response = ask(complete, tokens + answer + [1234])
    # The last token was drawn and never computed.
    assert cached_tokens(response) == hits_of(len(tokens) + NUM_TOKENS - 1, kv_cache_mode)


def test_a_salt_keeps_prefixes_apart(complete, kv_cache_mode):
    tokens = prompt(4, 64)
    ask(complete, tokens, cache_salt="a")
    assert cached_tokens(ask(complete, tokens, cache_salt="b")) == 0
    response = ask(complete, tokens, cache_salt="a")
    assert cached_tokens(response) == hits_of(63, kv_cache_mode)


def test_scores_of_a_prompt_are_computed_whole(complete):
    tokens = prompt(5, 100)
    first = ask(complete, tokens, prompt_logprobs=1)
    again = ask(complete, tokens, prompt_logprobs=1)
    assert cached_tokens(again) == 0
    assert len(first.choices[0].prompt_logprobs) == len(again.choices[0].prompt_logprobs) == 100


def test_counters(server, complete, kv_cache_mode):
    wait_until_idle(server)
    before = metrics(server)
    tokens = prompt(6, 100)
    for _ in range(3):
        ask(complete, tokens)
    after = metrics(server)

    def rise(name):
        return after[f"vllm:{name}_total"] - before[f"vllm:{name}_total"]

    hits = 2 * hits_of(99, kv_cache_mode)
    assert rise("prefix_cache_hits") == hits
    assert rise("prefix_cache_queries") == (300 if kv_cache_mode == "paged" else 0)
    assert rise("prompt_tokens") == 300
    assert rise("prompt_tokens_cached") == hits
