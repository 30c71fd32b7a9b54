# SPDX-License-Identifier: Apache-2.0
"""Sampling parameters, each by what it does to an answer of the real model."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests.e2e.prompts import QUESTION

PROMPT = "The capital of France is"
NUM_DRAWS = 80
REPEATING = "one two three one two three one two three one"


@pytest.fixture(scope="module")
def check(complete, reference):
    """Ask greedily with options, and compare with the reference under the same change of logits.

    Returns the answer, which must differ from the one without options.
    """

    def ask(change, prompt=REPEATING, max_tokens=24, **options):
        choice = complete(prompt, max_tokens=max_tokens, **options).choices[0]
        plain = complete(prompt, max_tokens=max_tokens).choices[0]
        assert choice.token_ids != plain.token_ids
        tokens = choice.prompt_token_ids
        assert choice.token_ids == reference.greedy_under(tokens, choice.token_ids, change)
        return choice

    return ask


@pytest.mark.parametrize(
    "options", [{"top_p": 1e-50}, {"repetition_penalty": 1e39}, {"repetition_penalty": 1e-46}]
)
def test_numbers_that_float32_does_not_have(complete, options):
    """They are legal, and must not end the engine, for anybody."""
    answer = complete(PROMPT, max_tokens=4, temperature=1.0, **options)
    assert answer.usage.completion_tokens >= 1
    assert complete(PROMPT, max_tokens=4).choices[0].text


def test_presence_penalty(check):
    def change(logits, answer):
        logits[list(set(answer))] -= 1.5
        return logits

    check(change, presence_penalty=1.5)


def test_frequency_penalty(check):
    def change(logits, answer):
        for token, count in Counter(answer).items():
            logits[token] -= 0.75 * count
        return logits

    check(change, frequency_penalty=0.75)


def test_negative_penalties(check):
    def change(logits, answer):
        for token, count in Counter(answer).items():
            logits[token] += 2.0 * count + 2.0
        return logits

    check(change, prompt=PROMPT, frequency_penalty=-2.0, presence_penalty=-2.0)


def test_repetition_penalty(check, reference):
    prompt = reference.tokenizer.encode(REPEATING)

    def change(logits, answer):
        seen = list({*prompt, *answer})
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.3, logits[seen] * 1.3)
        return logits

    check(change, prompt=prompt, repetition_penalty=1.3)


def test_all_penalties(check, reference):
    prompt = reference.tokenizer.encode(REPEATING)

    def change(logits, answer):
        seen = list({*prompt, *answer})
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / 1.1, logits[seen] * 1.1)
        for token, count in Counter(answer).items():
            logits[token] -= 0.3 * count + 0.4
        return logits

    check(
        change,
        prompt=prompt,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        presence_penalty=0.4,
    )


def test_logit_bias_forces_a_token(complete):
    choice = complete(PROMPT, max_tokens=4, logit_bias={"300": 100.0}).choices[0]
    assert choice.token_ids == [300] * 4


def test_logit_bias_shifts_logits(check):
    bias = {28: -3.0, 30: -100.0, 198: 2.5, 260: 1.0}

    def change(logits, answer):
        for token, value in bias.items():
            logits[token] += value
        return logits

    options = {str(token): value for token, value in bias.items()}
    assert 30 not in check(change, prompt=PROMPT, logit_bias=options).token_ids


def test_allowed_token_ids(check):
    allowed = [260, 282, 198, 30, 7042, 49151]

    def change(logits, answer):
        masked = torch.full_like(logits, -torch.inf)
        masked[allowed] = logits[allowed]
        return masked

    assert set(check(change, prompt=PROMPT, allowed_token_ids=allowed).token_ids) <= {*allowed}


def test_bad_words(check, complete, reference):
    """A word is forbidden at the start of a text and after a space, if it is one token."""
    encode = reference.tokenizer.encode
    first = complete(PROMPT).choices[0].token_ids[0]
    word = reference.tokenizer.decode([first]).strip()

    def change(logits, answer):
        for tokens in (encode(word), encode(f" {word}")):
            if answer[len(answer) - len(tokens) + 1 :] == tokens[:-1]:
                logits[tokens[-1]] = -torch.inf
        return logits

    assert word not in check(change, prompt=PROMPT, bad_words=[word]).text


def test_bad_words_of_several_tokens(check, complete, reference):
    tokens = complete(PROMPT).choices[0].token_ids
    phrase = reference.tokenizer.decode(tokens[:6]).strip()
    forbidden = reference.tokenizer.encode(f" {phrase}")
    assert tokens[: len(forbidden)] == forbidden
    assert len(forbidden) > 2

    def change(logits, answer):
        if answer == forbidden[:-1]:
            logits[forbidden[-1]] = -torch.inf
        return logits

    choice = check(change, prompt=PROMPT, bad_words=[phrase])
    assert choice.token_ids[: len(forbidden) - 1] == forbidden[:-1]  # only the last is refused


def test_min_tokens_holds_back_the_end_and_stop_tokens(check, complete, reference):
    prompt = reference.chat_tokens(QUESTION)
    plain = complete(prompt).choices[0]
    assert plain.finish_reason == "stop"
    stop = plain.token_ids[2]
    ends = [stop, reference.tokenizer.eos_token_id, 0]  # 0: the model's second end token

    def change(logits, answer):
        if len(answer) < 14:
            logits[ends] = -torch.inf
        return logits

    choice = check(change, prompt=prompt, max_tokens=40, min_tokens=14, stop_token_ids=[stop])
    assert not {*ends} & {*choice.token_ids[:14]}


def test_min_tokens_and_stop_strings(complete):
    text = complete(PROMPT).choices[0].text
    choice = complete(PROMPT, stop=[text[1:4]], min_tokens=8).choices[0]
    assert len(choice.token_ids) >= 8


@pytest.mark.parametrize(
    "options", [{"top_p": 1e-6}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 0.01}], ids=str
)
def test_filters_that_leave_one_token_are_greedy(complete, options):
    greedy = complete(PROMPT).choices[0].token_ids
    options = {"temperature": 1.0, "seed": 3} | options
    assert complete(PROMPT, **options).choices[0].token_ids == greedy


@pytest.fixture(scope="module")
def probabilities(reference):
    prompt = reference.tokenizer.encode("My favourite colour is")
    return torch.softmax(reference.logits(prompt)[0] / 1.5, dim=-1)


@pytest.fixture(scope="module")
def draw(complete):
    def first_tokens(**options):
        options = {"temperature": 1.5, "n": NUM_DRAWS, "max_tokens": 1, "seed": 1} | options
        choices = complete("My favourite colour is", **options).choices
        return Counter(choice.token_ids[0] for choice in choices)

    return first_tokens


class TestFilters:
    """First tokens of many answers: only those that a filter leaves, and all of the likely."""

    @staticmethod
    def check(drawn, kept, probabilities):
        assert {*drawn} <= {*kept}
        expected = probabilities[kept] / probabilities[kept].sum()
        for token, share in zip(kept, expected.tolist(), strict=True):
            deviation = (NUM_DRAWS * share * (1 - share)) ** 0.5
            assert abs(drawn[token] - NUM_DRAWS * share) < 5 * deviation + 1

    def test_top_k(self, draw, probabilities):
        kept = torch.topk(probabilities, 5).indices.tolist()
        self.check(draw(top_k=5), kept, probabilities)

    def test_top_p(self, draw, probabilities):
        ordered = probabilities.sort(descending=True)
        number = int((ordered.values.cumsum(0) < 0.3).sum()) + 1
        self.check(draw(top_p=0.3), ordered.indices[:number].tolist(), probabilities)

    def test_min_p(self, draw, probabilities):
        kept = torch.nonzero(probabilities >= 0.3 * probabilities.max()).flatten().tolist()
        assert len(kept) > 1
        self.check(draw(min_p=0.3), kept, probabilities)

    def test_top_p_of_top_k(self, draw, probabilities):
        ordered = probabilities.sort(descending=True)
        best = ordered.values[:8] / ordered.values[:8].sum()
        number = int((best.cumsum(0) < 0.5).sum()) + 1
        self.check(draw(top_k=8, top_p=0.5), ordered.indices[:number].tolist(), probabilities)


def test_mixed_parameters_at_once_equal_each_alone(complete):
    """Requests of all kinds in one batch; those with a seed draw what they draw alone."""
    requests = [
        {},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.0, "seed": 2, "top_p": 0.8, "logprobs": 3},
        {"temperature": 0.7, "seed": 3, "top_k": 20, "repetition_penalty": 1.2},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"30": -100.0}, "min_tokens": 10},
        {"temperature": 1.3, "seed": 4, "min_p": 0.05, "bad_words": ["Paris"]},
        {"structured_outputs": {"choice": ["Paris", "London"]}},
        {"structured_outputs": {"regex": r" [A-Z][a-z]{3,8}\."}, "temperature": 1.0, "seed": 5},
        {"prompt_logprobs": 2, "logprobs": 2},
        {"allowed_token_ids": [260, 282, 198, 30, 7042], "temperature": 1.0, "seed": 6},
        {"temperature": 2.0, "seed": 7, "stop": ["a"]},
    ]

    def say(options):
        choice = complete(PROMPT, **options).choices[0]
        return choice.token_ids, choice.text, choice.finish_reason

    alone = [say(options) for options in requests]
    with ThreadPoolExecutor(len(requests) * 2) as pool:
        together = list(pool.map(say, requests * 2))
    assert together == alone * 2
