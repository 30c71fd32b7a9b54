# SPDX-License-Identifier: Apache-2.0
"""Logprobs of answers and prompts, compared with transformers."""

import math

import pytest
import torch

from tests.e2e.prompts import PROMPTS, QUESTION

PROMPT = "The capital of France is"
TOLERANCE = 1e-3

AS_IDS = {"return_tokens_as_token_ids": True}


def token_id(name):
    return int(name.removeprefix("token_id:"))


def check_best(found, expected, number):
    """Compare {token: logprob} with the `number` best of `expected`, [vocab_size]."""
    best = torch.topk(expected, number)
    assert list(found) == best.indices.tolist()
    assert list(found.values()) == pytest.approx(best.values.tolist(), abs=TOLERANCE)


def test_of_a_completion(complete, reference):
    choice = complete(PROMPT, max_tokens=6, logprobs=5, **AS_IDS).choices[0]
    prompt = choice.prompt_token_ids
    expected = reference.logprobs([*prompt, *choice.token_ids[:-1]], 6)
    assert [token_id(token) for token in choice.logprobs.tokens] == choice.token_ids
    for step, token in enumerate(choice.token_ids):
        found = {
            token_id(name): value for name, value in choice.logprobs.top_logprobs[step].items()
        }
        check_best(found, expected[step], 5)
        assert choice.logprobs.token_logprobs[step] == found[token]


def test_of_a_drawn_token_that_is_not_among_the_best(complete, reference):
    options = {"temperature": 2.0, "seed": 3, "max_tokens": 12, "logprobs": 1}
    choice = complete(PROMPT, **options, **AS_IDS).choices[0]
    expected = reference.logprobs([*choice.prompt_token_ids, *choice.token_ids[:-1]], 12)
    drawn = [float(expected[step, token]) for step, token in enumerate(choice.token_ids)]
    assert choice.logprobs.token_logprobs == pytest.approx(drawn, abs=TOLERANCE)
    best = expected.argmax(dim=-1).tolist()
    assert sum(token != other for token, other in zip(choice.token_ids, best, strict=True)) > 2
    for step, drawn_and_best in enumerate(zip(choice.token_ids, best, strict=True)):
        found = choice.logprobs.top_logprobs[step]
        assert {token_id(name) for name in found} == set(drawn_and_best)


def test_of_a_chat(chat, reference):
    response = chat(
        max_tokens=4,
        logprobs=True,
        top_logprobs=20,
        extra_body={**AS_IDS, "return_token_ids": True},
    )
    choice = response.choices[0]
    prompt = reference.chat_tokens(QUESTION)
    expected = reference.logprobs([*prompt, *choice.token_ids[:-1]], 4)
    for step, content in enumerate(choice.logprobs.content):
        found = {token_id(top.token): top.logprob for top in content.top_logprobs}
        check_best(found, expected[step], 20)
        assert token_id(content.token) == choice.token_ids[step]
        assert content.logprob == found[choice.token_ids[step]]


def test_of_a_stream(chat):
    options = {"logprobs": True, "top_logprobs": 3}
    whole = chat(**options).choices[0].logprobs.content
    chunks = [chunk for chunk in chat(stream=True, **options) if chunk.choices]
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == whole


def test_of_the_whole_vocabulary(complete, reference):
    choice = complete(PROMPT, max_tokens=1, logprobs=-1, **AS_IDS).choices[0]
    (step,) = choice.logprobs.top_logprobs
    found = torch.full([49152], math.nan)
    for name, value in step.items():
        found[token_id(name)] = value
    expected = reference.logprobs(choice.prompt_token_ids)[0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_are_raw_whatever_the_sampling_parameters(complete, reference):
    prompt = reference.tokenizer.encode(PROMPT)
    expected = reference.logprobs(prompt)[0]
    forced = 300
    choice = complete(
        prompt,
        max_tokens=1,
        logprobs=2,
        logit_bias={str(forced): 100.0},
        presence_penalty=1.0,
        temperature=1.5,
        min_p=0.5,
        **AS_IDS,
    ).choices[0]
    assert choice.token_ids == [forced]
    assert choice.logprobs.token_logprobs == [pytest.approx(float(expected[forced]), abs=TOLERANCE)]


def test_of_chosen_tokens(complete, reference):
    prompt = reference.tokenizer.encode(PROMPT)
    chosen = [7042, 260, 11, 49151]
    choice = complete(prompt, max_tokens=1, logprobs=1, logprob_token_ids=chosen, **AS_IDS).choices[
        0
    ]
    (step,) = choice.logprobs.top_logprobs
    found = {token_id(name): value for name, value in step.items()}
    expected = reference.logprobs(prompt)[0]
    assert set(found) == {*chosen, *choice.token_ids}
    for token, value in found.items():
        assert value == pytest.approx(float(expected[token]), abs=TOLERANCE)


def test_generative_scores(client, server, reference):
    labels = [7042, 260]
    body = {"model": server.name, "query": PROMPT, "items": [""], "label_token_ids": labels}
    prompt = reference.tokenizer.encode(PROMPT)
    response = client.post("/../generative_scoring", cast_to=object, body=body)
    expected = torch.softmax(reference.logits(prompt)[0, labels], dim=-1)
    assert response["data"][0]["score"] == pytest.approx(float(expected[0]), abs=TOLERANCE)


class TestPromptLogprobs:
    """The logprob of every token of a prompt, and of the best ones in its place."""

    @pytest.mark.parametrize("name", ["sentence", "page"])
    def test_values(self, complete, reference, name):
        """The page comes in chunks."""
        (prompt,) = [prompt for prompt in PROMPTS if prompt.name == name]
        tokens = prompt.token_ids(reference)
        choice = complete(tokens, max_tokens=1, prompt_logprobs=3).choices[0]
        first, *entries = choice.prompt_logprobs
        assert first is None
        assert len(entries) == len(tokens) - 1
        expected = reference.logprobs(tokens[:-1], len(tokens) - 1)
        best = torch.topk(expected, 3).indices.tolist()
        for position, entry in enumerate(entries):
            found = {int(token): value["logprob"] for token, value in entry.items()}
            token = tokens[position + 1]
            assert set(found) == {token, *best[position]}
            values = [float(expected[position, key]) for key in found]
            assert list(found.values()) == pytest.approx(values, abs=TOLERANCE)
            rank = int((expected[position] > expected[position, token]).sum()) + 1
            assert entry[str(token)]["rank"] == pytest.approx(rank, rel=0.02)

    def test_of_a_chat(self, chat, reference):
        response = chat(max_tokens=1, extra_body={"prompt_logprobs": 0})
        tokens = reference.chat_tokens(QUESTION)
        expected = reference.logprobs(tokens[:-1], len(tokens) - 1)
        for position, entry in enumerate(response.prompt_logprobs[1:]):
            ((token, value),) = entry.items()
            assert int(token) == tokens[position + 1]
            assert value["logprob"] == pytest.approx(
                float(expected[position, int(token)]), abs=TOLERANCE
            )

    @pytest.mark.parametrize("max_tokens", [0, 2])
    def test_echo(self, complete, reference, max_tokens):
        response = complete(PROMPT, echo=True, logprobs=1, max_tokens=max_tokens, **AS_IDS)
        logprobs = response.choices[0].logprobs
        tokens = [token_id(token) for token in logprobs.tokens]
        prompt = reference.tokenizer.encode(PROMPT)
        assert tokens[: len(prompt)] == prompt
        assert len(tokens) == len(prompt) + max_tokens
        expected = reference.logprobs(tokens[:-1], len(tokens) - 1)
        values = [float(expected[step, token]) for step, token in enumerate(tokens[1:])]
        assert logprobs.token_logprobs[0] is None
        assert logprobs.token_logprobs[1:] == pytest.approx(values, abs=TOLERANCE)
