# SPDX-License-Identifier: Apache-2.0
"""/v1/chat/completions and /v1/responses by the openai client, /v1/messages by anthropic's."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.prompts import QUESTION

QUESTION_TEXT = QUESTION[0]["content"]


@pytest.fixture(scope="module")
def answer(chat, reference):
    """Return the greedy answer, which transformers confirms."""
    choice = chat(extra_body={"return_token_ids": True}).choices[0]
    prompt = reference.chat_tokens(QUESTION)
    assert choice.token_ids == reference.choices(prompt, choice.token_ids).token_ids
    assert "Paris" in choice.message.content
    return choice.message.content


class TestChat:
    def test_usage_and_length(self, chat, reference, kv_cache_mode):
        response = chat(max_tokens=3)
        assert response.choices[0].finish_reason == "length"
        assert response.usage.completion_tokens == 3
        assert response.usage.prompt_tokens == len(reference.chat_tokens(QUESTION))
        if kv_cache_mode == "mlx-managed":  # tests/e2e/test_prefix_cache.py has the other
            assert response.usage.prompt_tokens_details.cached_tokens == 0

    def test_stream_with_usage_equals_the_whole(self, chat, answer):
        whole = chat()
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content == answer
        assert whole.choices[0].finish_reason == "stop"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert len(chunks) > 3
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens

    def test_stop_string(self, chat, answer):
        choice = chat(stop=["Paris"]).choices[0]
        assert choice.message.content == answer[: answer.index("Paris")]
        assert (choice.finish_reason, choice.stop_reason) == ("stop", "Paris")

    def test_started_answer_is_continued(self, chat, answer):
        begun = [*QUESTION, {"role": "assistant", "content": "The capital of France"}]
        options = {"add_generation_prompt": False, "continue_final_message": True}
        content = chat(messages=begun, extra_body=options).choices[0].message.content
        assert f"The capital of France{content}" == answer

    def test_batch_of_conversations(self, client, server, answer):
        body = {"model": server.name, "messages": [QUESTION] * 2, "temperature": 0}
        response = client.post("/chat/completions/batch", cast_to=object, body=body)
        assert [choice["message"]["content"] for choice in response["choices"]] == [answer] * 2


class TestSeeds:
    def test_seed_repeats_and_other_seeds_differ(self, chat):
        def say(seed):
            response = chat(temperature=1.5, seed=seed, max_tokens=20)
            return response.choices[0].message.content

        first = say(1)
        assert say(1) == first
        assert any(say(seed) != first for seed in (2, 3, 4))

    def test_seed_does_not_depend_on_the_batch(self, chat):
        alone = chat(temperature=1.2, seed=7).choices[0].message.content
        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(chat, temperature=1.2, seed=seed) for seed in (5, 6, 7, 8)]
            together = futures[2].result().choices[0].message.content
        assert together == alone

    def test_without_a_seed_answers_differ(self, chat):
        choices = chat(temperature=1.5, n=4).choices
        assert len({choice.message.content for choice in choices}) > 1


@pytest.fixture(scope="module")
def respond(client, server):
    def create(**options):
        return client.responses.create(
            **{
                "model": server.name,
                "input": QUESTION_TEXT,
                "temperature": 0.0,
                "max_output_tokens": 24,
                **options,
            }
        )

    return create


class TestResponses:
    def test_answer_and_usage(self, respond, chat, answer):
        response = respond()
        assert response.output_text == answer
        assert response.status == "completed"
        usage = chat().usage
        assert response.usage.input_tokens == usage.prompt_tokens
        assert response.usage.output_tokens == usage.completion_tokens

    def test_too_short(self, respond):
        response = respond(max_output_tokens=2)
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.usage.output_tokens == 2

    def test_instructions_and_a_conversation(self, respond, chat):
        conversation = [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Nice to meet you, Ada."},
            {"role": "user", "content": "What is my name?"},
        ]
        system = "You answer in one short sentence."
        expected = chat(messages=[{"role": "system", "content": system}, *conversation])
        response = respond(instructions=system, input=conversation)
        assert response.output_text == expected.choices[0].message.content

    def test_stream_with_usage(self, respond, answer):
        events = list(respond(stream=True))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == answer
        assert len(deltas) > 1
        assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
        assert events[-1].response.output_text == answer
        assert events[-1].response.usage.output_tokens == respond().usage.output_tokens


@pytest.fixture(scope="module")
def send(messages_client, server):
    def create(**options):
        return messages_client.messages.create(
            **{
                "model": server.name,
                "messages": QUESTION,
                "max_tokens": 24,
                "extra_body": {"temperature": 0.0},
                **options,
            }
        )

    return create


def _all_input_tokens(usage):
    """Anthropic's API counts those of a known prefix apart."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0)


class TestMessages:
    def test_answer_and_usage(self, send, chat, answer):
        message = send()
        assert [block.text for block in message.content] == [answer]
        assert message.stop_reason == "end_turn"
        usage = chat().usage
        assert _all_input_tokens(message.usage) == usage.prompt_tokens
        assert message.usage.output_tokens == usage.completion_tokens

    def test_system_and_stop_sequence(self, send, chat):
        system = "You answer in one short sentence."
        messages = [{"role": "system", "content": system}, *QUESTION]
        expected = chat(messages=messages).choices[0].message.content
        message = send(system=system, stop_sequences=["Paris"])
        assert message.content[0].text == expected[: expected.index("Paris")]
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")

    def test_too_short(self, send):
        message = send(max_tokens=2)
        assert message.stop_reason == "max_tokens"
        assert message.usage.output_tokens == 2

    def test_stream_with_usage(self, send, answer):
        events = list(send(stream=True))
        texts = [event.delta.text for event in events if event.type == "content_block_delta"]
        assert "".join(texts) == answer
        assert len(texts) > 1
        assert [events[0].type, events[-1].type] == ["message_start", "message_stop"]
        end = events[-2]
        assert end.type == "message_delta"
        assert end.delta.stop_reason == "end_turn"
        assert end.usage.output_tokens == send().usage.output_tokens

    def test_token_count(self, messages_client, server, reference):
        count = messages_client.messages.count_tokens(model=server.name, messages=QUESTION)
        assert count.input_tokens == len(reference.chat_tokens(QUESTION))
