# SPDX-License-Identifier: Apache-2.0
"""/v1/completions: prompts of every form, streams, ends of answers, several answers."""

import pytest

from tests.e2e.prompts import QUESTION

PROMPT = "The capital of France is"
OTHER_PROMPT = "2, 4, 6, 8, 10, 12, 14,"


def greedy(reference, prompt, answer):
    """Return what transformers says where the server said `answer`."""
    return reference.choices(prompt, answer).token_ids


def test_prompt_as_text_and_as_tokens(complete, reference):
    tokens = reference.tokenizer.encode(PROMPT)
    (as_text,), (as_tokens,) = complete(PROMPT).choices, complete(tokens).choices
    assert as_text.prompt_token_ids == as_tokens.prompt_token_ids == tokens
    assert as_text.token_ids == as_tokens.token_ids == greedy(reference, tokens, as_text.token_ids)
    assert as_text.text == reference.tokenizer.decode(as_text.token_ids)


def test_batch_of_prompts(complete, reference):
    prompts = [PROMPT, OTHER_PROMPT, "Once upon a time"]
    tokens = [reference.tokenizer.encode(prompt) for prompt in prompts]
    of_texts, of_tokens = complete(prompts), complete(tokens)
    assert of_texts.usage.prompt_tokens == sum(map(len, tokens))
    assert of_texts.usage.completion_tokens == 16 * 3
    for index, prompt in enumerate(tokens):
        choice = of_texts.choices[index]
        assert choice.index == index
        assert choice.token_ids == greedy(reference, prompt, choice.token_ids)
        assert of_tokens.choices[index].token_ids == choice.token_ids


def test_echo(complete):
    plain = complete(PROMPT)
    options = {"echo": True, "return_token_ids": False}  # with token ids vLLM echoes no text
    assert complete(PROMPT, **options).choices[0].text == PROMPT + plain.choices[0].text
    assert complete(PROMPT, **options, max_tokens=0).choices[0].text == PROMPT


def test_stream_with_usage_equals_the_whole(complete):
    whole = complete(PROMPT)
    chunks = list(complete(PROMPT, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 16
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"


def test_stream_of_several_prompts(complete):
    prompts = [PROMPT, OTHER_PROMPT]
    texts = ["", ""]
    for chunk in complete(prompts, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in complete(prompts).choices]


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings(complete, stream):
    text = complete(PROMPT).choices[0].text
    stop = text[12:15]  # somewhere inside of tokens
    end = text.index(stop)

    def say(**options):
        response = complete(PROMPT, stop=["never said", stop], stream=stream, **options)
        pieces = [chunk.choices[0] for chunk in response] if stream else response.choices
        assert pieces[-1].finish_reason == "stop"
        assert pieces[-1].stop_reason == stop
        return "".join(piece.text for piece in pieces)

    assert say() == text[:end]
    assert say(include_stop_str_in_output=True) == text[: end + len(stop)]


def test_stop_token_ids(complete, reference):
    tokens = complete(PROMPT).choices[0].token_ids
    stop = next(
        token for index, token in enumerate(tokens) if index >= 3 and tokens.index(token) == index
    )
    end = tokens.index(stop)
    choice = complete(PROMPT, stop_token_ids=[49151, stop]).choices[0]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert choice.token_ids == tokens[: end + 1]
    assert choice.text == reference.tokenizer.decode(tokens[:end])
    choice = complete(PROMPT, stop_token_ids=[stop], include_stop_str_in_output=True).choices[0]
    assert choice.text == reference.tokenizer.decode(tokens[: end + 1])


def test_end_of_sequence_and_ignoring_it(complete, reference):
    prompt = reference.chat_tokens(QUESTION)
    choice = complete(prompt, max_tokens=64).choices[0]
    end = reference.tokenizer.eos_token_id
    assert choice.finish_reason == "stop"
    assert choice.token_ids[-1] == end
    assert end not in choice.token_ids[:-1]
    longer = complete(prompt, max_tokens=len(choice.token_ids) + 3, ignore_eos=True).choices[0]
    assert longer.finish_reason == "length"
    assert longer.token_ids[:-3] == choice.token_ids


def test_several_answers_differ_and_are_those_of_their_seeds(complete):
    together = complete(PROMPT, temperature=1.0, n=4, seed=11).choices
    assert [choice.index for choice in together] == [0, 1, 2, 3]
    assert len({choice.text for choice in together}) == 4
    # vLLM gives the answers the seeds that follow the request's.
    alone = [complete(PROMPT, temperature=1.0, seed=11 + index).choices[0] for index in range(4)]
    assert [choice.token_ids for choice in together] == [choice.token_ids for choice in alone]


def test_several_answers_from_one_token_are_greedy(complete):
    expected = complete(PROMPT).choices[0].token_ids
    choices = complete(PROMPT, temperature=1.0, top_k=1, n=3).choices
    assert [choice.token_ids for choice in choices] == [expected] * 3


def test_best_of_is_ignored_as_in_vllm(complete):
    """vLLM 0.32 has no best_of: as many answers are drawn as are returned."""
    response = complete(PROMPT, temperature=1.0, n=2, best_of=4, seed=5, max_tokens=6)
    assert response.usage.completion_tokens == 12
    plain = complete(PROMPT, temperature=1.0, n=2, seed=5, max_tokens=6)
    assert [c.token_ids for c in response.choices] == [c.token_ids for c in plain.choices]


def test_truncated_prompt(complete, reference):
    tokens = reference.tokenizer.encode("word " * 600 + PROMPT)
    choice = complete(tokens, truncate_prompt_tokens=5).choices[0]
    assert choice.prompt_token_ids == tokens[-5:]
    assert choice.token_ids == greedy(reference, tokens[-5:], choice.token_ids)


def beam_search(reference, prompt, width, num_tokens):
    """Search in the reference's logprobs; returns answers, best first, without an end token."""
    beams, ended = [(0.0, [])], []
    eos = reference.tokenizer.eos_token_id
    for _ in range(num_tokens):
        candidates = []
        for score, answer in beams:
            values, ids = reference.logprobs([*prompt, *answer])[0].topk(2 * width)
            for value, token in zip(values.tolist(), ids.tolist(), strict=True):
                if token == eos:
                    ended.append((score + value, answer, len(prompt) + len(answer)))
                else:
                    candidates.append((score + value, [*answer, token]))
        beams = sorted(candidates, reverse=True)[:width]
    ended += [(score, answer, len(prompt) + len(answer)) for score, answer in beams]
    ended.sort(key=lambda beam: beam[0] / beam[2], reverse=True)
    return [answer for _, answer, _ in ended[:width]]


def test_beam_search(complete, reference):
    prompt = reference.tokenizer.encode(PROMPT)
    choices = complete(prompt, n=3, max_tokens=5, use_beam_search=True).choices
    eos = reference.tokenizer.eos_token_id
    found = [[token for token in choice.token_ids if token != eos] for choice in choices]
    assert found == beam_search(reference, prompt, 3, 5)
