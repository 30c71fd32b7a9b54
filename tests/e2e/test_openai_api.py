# SPDX-License-Identifier: Apache-2.0
"""The server as clients of the OpenAI API see it."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def client(server):
    return server.client()


@pytest.fixture
def chat(client, server):
    def create(**options):
        return client.chat.completions.create(
            **{"model": server.name, "messages": QUESTION, "max_tokens": 24, **options}
        )

    return create


def test_model_is_listed(client, server):
    (model,) = client.models.list().data
    assert model.id == server.name
    assert model.max_model_len == 2048


def test_streamed_answer_is_right_and_equals_the_whole(chat):
    whole = chat(temperature=0.0)
    assert "Paris" in whole.choices[0].message.content
    assert whole.choices[0].finish_reason == "stop"
    chunks = list(chat(temperature=0.0, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert chunks[-1].usage == whole.usage


def test_usage_and_length(chat, reference):
    response = chat(temperature=0.0, max_tokens=3)
    assert response.choices[0].finish_reason == "length"
    assert response.usage.completion_tokens == 3
    assert response.usage.prompt_tokens == len(reference.chat_tokens(QUESTION))


def test_stop_string(chat):
    content = chat(temperature=0.0, stop=["Paris"]).choices[0].message.content
    assert content
    assert "Paris" not in content


def test_seed_repeats_and_other_seeds_differ(chat):
    def say(seed):
        response = chat(temperature=1.5, seed=seed, max_tokens=20)
        return response.choices[0].message.content

    first = say(1)
    assert say(1) == first
    assert any(say(seed) != first for seed in (2, 3, 4))


def test_seed_does_not_depend_on_the_batch(chat):
    alone = chat(temperature=1.2, seed=7).choices[0].message.content
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(chat, temperature=1.2, seed=seed) for seed in (5, 6, 7, 8)]
        together = futures[2].result().choices[0].message.content
    assert together == alone


@pytest.mark.parametrize("options", [{"top_p": 1e-6}, {"extra_body": {"top_k": 1}}], ids=str)
def test_filters_that_leave_one_token_are_greedy(chat, options):
    greedy = chat(temperature=0.0).choices[0].message.content
    assert chat(temperature=1.0, seed=3, **options).choices[0].message.content == greedy


def test_several_answers(chat):
    choices = chat(temperature=1.0, n=3, seed=1).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1


def test_logprobs_are_those_of_the_reference(client, server, reference):
    import torch

    tokens = reference.tokenizer.encode("The capital of France is")
    response = client.completions.create(
        model=server.name,
        prompt=tokens,
        max_tokens=1,
        temperature=0.0,
        logprobs=5,
        extra_body={"return_tokens_as_token_ids": True},
    )
    expected = torch.log_softmax(reference.logits(tokens)[0], dim=-1)
    best = torch.topk(expected, 5)
    found = response.choices[0].logprobs.top_logprobs[0]
    assert set(found) == {f"token_id:{token}" for token in best.indices.tolist()}
    for token, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        assert found[f"token_id:{token}"] == pytest.approx(logprob, abs=1e-3)


REFUSED = [
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"logit_bias": {"5": 1.0}},
    {"response_format": {"type": "json_object"}},
    {"extra_body": {"min_p": 0.1}},
    {"extra_body": {"repetition_penalty": 1.2}},
    {"extra_body": {"min_tokens": 2}},
    {"extra_body": {"prompt_logprobs": 1}},
    {"extra_body": {"allowed_token_ids": [5]}},
    {"extra_body": {"bad_words": ["a"]}},
    {"extra_body": {"vllm_xargs": {"key": 1}}},
]


@pytest.mark.parametrize("options", REFUSED, ids=str)
def test_refused_parameter_is_a_400_and_the_server_goes_on(chat, options):
    name = next(iter(options.get("extra_body", options)))
    names = {"response_format": "structured_outputs", "vllm_xargs": "extra_args"}
    with pytest.raises(openai.BadRequestError) as error:
        chat(**options)
    assert f"{names.get(name, name)}" in str(error.value)
    assert "not supported" in str(error.value)
    assert chat(max_tokens=1).usage.completion_tokens == 1


def test_prompt_that_is_too_long(client, server):
    with pytest.raises(openai.BadRequestError, match=r"maximum (model|context) length"):
        client.completions.create(model=server.name, prompt=[7] * 2100, max_tokens=1)


def test_client_that_goes_away(chat):
    """An aborted request leaves its place to others."""
    stream = chat(temperature=0.0, max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    assert "Paris" in chat(temperature=0.0).choices[0].message.content
