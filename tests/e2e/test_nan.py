# SPDX-License-Identifier: Apache-2.0
"""A model with a token that makes all logits NaN: its requests fail, the server goes on."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.e2e.prompts import NAN_TOKEN


@pytest.fixture
def say(tiny_server):
    def create(prompt, **options):
        return tiny_server.client().completions.create(
            **{
                "model": tiny_server.name,
                "prompt": prompt,
                "max_tokens": 12,
                "temperature": 0.0,
                "extra_body": {"ignore_eos": True, "return_token_ids": True},
                **options,
            }
        )

    return create


def test_the_request_fails(say):
    with pytest.raises(openai.InternalServerError):
        say([5, 6, NAN_TOKEN])


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ([5, 6, NAN_TOKEN], {}),
        # No token is left to be drawn.
        ([5, 6], {"min_tokens": 1, "allowed_token_ids": [7], "stop_token_ids": [7]}),
    ],
)
def test_the_request_fails_although_its_prompt_has_scores(say, prompt, options):
    before = say([7, 8, 9]).choices[0].token_ids
    with pytest.raises(openai.InternalServerError):
        say(prompt, extra_body={"prompt_logprobs": 0, **options})
    assert say([7, 8, 9]).choices[0].token_ids == before


def test_a_stream_ends_with_an_error(say):
    with pytest.raises(openai.APIError, match="Internal server error"):
        list(say([5, 6, NAN_TOKEN], stream=True))


def test_others_in_the_batch_and_after_it_are_not_touched(say, tiny_server):
    prompts = [[7, 8, 9], [10] * 30, [11, 12]]
    before = [say(prompt).choices[0].token_ids for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        bad = [pool.submit(say, [5] * 40 + [NAN_TOKEN]) for _ in range(3)]
        good = [pool.submit(say, prompt) for prompt in prompts]
        for future in bad:
            with pytest.raises(openai.InternalServerError):
                future.result()
        assert [future.result().choices[0].token_ids for future in good] == before
    assert [say(prompt).choices[0].token_ids for prompt in prompts] == before
    assert "hold NaN" in tiny_server.text()
