# SPDX-License-Identifier: Apache-2.0
"""Requests that cannot be served: vLLM's 400, and the next request is."""

import json
import urllib.error
import urllib.request

import anthropic
import openai
import pytest

from tests.e2e.prompts import QUESTION

PROMPT = "The capital of France is"

OUT_OF_RANGE = [
    {"temperature": -1.0},
    {"temperature": 3.0},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"top_k": -2},
    {"min_p": 2.0},
    {"presence_penalty": 3.0},
    {"frequency_penalty": -2.5},
    {"repetition_penalty": 0.0},
    {"max_tokens": 0},
    {"max_tokens": 5000},
    {"min_tokens": 17},
    {"n": 0},
    {"n": 2},  # of a greedy answer
    {"seed": 2**63},
    {"stop": ""},
    {"stop_token_ids": [49152]},
    {"logprobs": -2},
    {"logprobs": 49153},
    {"prompt_logprobs": -2},
    {"logprob_token_ids": [5]},  # without logprobs
    {"logprob_token_ids": [49152], "logprobs": 1},
    {"logit_bias": {"49152": 1.0}},
    {"logit_bias": {"word": 1.0}},
    {"allowed_token_ids": []},
    {"allowed_token_ids": [49152]},
    {"bad_words": [""]},
    {"thinking_token_budget": -3},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"grammar": "root = nonsense"}},
    {"structured_outputs": {"json": {"type": "nonsense"}}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"response_format": {"type": "json_schema"}},
]

BAD_PROMPTS = {
    "too long": [7] * 2100,
    "a token that does not exist": [49152],
    "a negative token": [-1],
    "empty": "",
    "no tokens": [],
    "one of a batch": [[5, 6], [49152]],
}


@pytest.fixture
def refused(complete):
    """Expect an error of one class, with the server going on."""
    from contextlib import contextmanager

    @contextmanager
    def expect(error=openai.BadRequestError, match=None):
        with pytest.raises(error, match=match):
            yield
        assert complete(PROMPT, max_tokens=1).choices[0].text == " Paris"

    return expect


@pytest.mark.parametrize("options", OUT_OF_RANGE, ids=str)
def test_parameter_out_of_range(complete, refused, options):
    name = next(iter(options))
    unnamed = name in ("structured_outputs", "response_format", "logprob_token_ids")
    with refused(match=None if unnamed else name):
        complete(PROMPT, **options)


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompt(complete, refused, name):
    with refused():
        complete(BAD_PROMPTS[name])


def test_prompt_that_is_too_long_says_so(complete, refused):
    with refused(match=r"maximum (model|context) length"):
        complete([7] * 2100)


def test_answer_ends_at_the_context_length(complete):
    response = complete([7] * 2040, max_tokens=16, ignore_eos=True)
    assert response.usage.completion_tokens == 8
    assert response.choices[0].finish_reason == "length"


def test_chat(chat, refused):
    for messages in ([], [{"role": "user", "content": "word " * 3000}]):
        with refused():
            chat(messages=messages)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    with refused(match="not a multimodal model"):
        chat(messages=[{"role": "user", "content": [image]}])


def test_unknown_model(client, messages_client, complete, refused):
    with refused(openai.NotFoundError, match="does not exist"):
        complete(PROMPT, model="nobody")
    with refused(openai.NotFoundError, match="does not exist"):
        client.responses.create(model="nobody", input=PROMPT)
    with refused(anthropic.NotFoundError, match="does not exist"):
        messages_client.messages.create(model="nobody", messages=QUESTION, max_tokens=4)


def test_other_apis(client, messages_client, server, refused):
    with refused(match="temperature"):
        client.responses.create(model=server.name, input=PROMPT, temperature=-1)
    with refused(match="maximum context length"):
        client.responses.create(model=server.name, input="word " * 3000)
    with refused(anthropic.BadRequestError, match="max_tokens"):
        messages_client.messages.create(model=server.name, messages=QUESTION, max_tokens=0)
    with refused(openai.NotFoundError):
        client.embeddings.create(model=server.name, input=PROMPT)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": {}}', b'{"prompt": 5}'], ids=str)
def test_body_that_is_no_request(server, refused, body):
    request = urllib.request.Request(
        f"{server.url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with refused(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=30)


def test_an_error_has_the_form_of_openai(complete):
    with pytest.raises(openai.BadRequestError) as error:
        complete(PROMPT, temperature=-1.0)
    assert error.value.status_code == 400
    assert error.value.type == "BadRequestError"
    assert error.value.param == "temperature"
    assert json.loads(error.value.response.text)["error"]["code"] == 400
