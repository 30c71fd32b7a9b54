# SPDX-License-Identifier: Apache-2.0
"""A model that thinks before it answers: fields, budgets, and grammars of the answer only."""

import pytest

from tests.e2e.prompts import NAN_TOKEN, THOUGHT_TOKENS

START, END = THOUGHT_TOKENS
# No token ends the thoughts or the answer, or is NaN.
STEERED = {str(token): -100.0 for token in (1, START, END, NAN_TOKEN)}
CHOICE = {"structured_outputs": {"choice": ["w5"]}}


@pytest.fixture
def think(tiny_server):
    def create(**options):
        body = {"return_token_ids": True, **options.pop("extra_body", {})}
        return tiny_server.client().chat.completions.create(
            **{
                "model": tiny_server.name,
                "messages": [{"role": "user", "content": "w10 w11 w12"}],
                "max_tokens": 12,
                "temperature": 0.0,
                "logit_bias": STEERED,
                **options,
            },
            extra_body=body,
        )

    return create


def test_thoughts_without_an_end_are_no_answer(think):
    response = think()
    message = response.choices[0].message
    assert response.prompt_token_ids == [10, 11, 12, START]
    assert message.content is None
    assert len(message.reasoning.split()) == 12


@pytest.mark.parametrize("budget", [0, 1, 5])
def test_budget_of_thoughts(think, budget):
    free = think().choices[0].token_ids
    choice = think(extra_body={"thinking_token_budget": budget}).choices[0]
    assert choice.token_ids[:budget] == free[:budget]
    assert choice.token_ids[budget] == END
    words = choice.message.content.split()
    assert words == [f"w{token}" for token in choice.token_ids[budget + 1 :]]
    assert (choice.message.reasoning or "").split() == [f"w{token}" for token in free[:budget]]


def test_budget_in_a_batch(think):
    """Budgets of other requests do not matter, nor does the batch."""
    from concurrent.futures import ThreadPoolExecutor

    bodies = [{"thinking_token_budget": budget} for budget in range(6)] + [{}] * 2

    def say(body):
        return think(extra_body=body).choices[0].token_ids

    alone = [say(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(say, bodies)) == alone


def test_a_grammar_holds_after_the_thoughts(think):
    choice = think(extra_body={**CHOICE, "thinking_token_budget": 4}).choices[0]
    assert choice.token_ids[:4] == think().choices[0].token_ids[:4]
    assert len(choice.message.reasoning.split()) == 4
    assert choice.message.content.strip() == "w5"
    assert choice.finish_reason == "stop"


def test_stream(think):
    options = {"extra_body": {**CHOICE, "thinking_token_budget": 4}}
    whole = think(**options).choices[0].message
    reasoning, content = "", ""
    for chunk in think(stream=True, **options):
        delta = chunk.choices[0].delta
        reasoning += getattr(delta, "reasoning", None) or ""
        content += delta.content or ""
    assert (reasoning.split(), content.split()) == (whole.reasoning.split(), ["w5"])


def test_responses(think, tiny_server):
    expected = think(max_tokens=8).choices[0].message.reasoning
    response = tiny_server.client().responses.create(
        model=tiny_server.name,
        input="w10 w11 w12",
        temperature=0,
        max_output_tokens=8,
        extra_body={"logit_bias": STEERED},
    )
    (item,) = response.output
    assert item.type == "reasoning"
    assert item.content[0].text == expected
