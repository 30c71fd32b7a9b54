# SPDX-License-Identifier: Apache-2.0
"""Grammars and tools: the output obeys, and the API takes it apart."""

import json
import re

import jsonschema
import pytest

from tests.e2e.prompts import QUESTION

CITY_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "country": {"enum": ["France", "Italy", "Chile"]},
        "districts": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "country", "districts", "is_capital"],
    "additionalProperties": False,
}
JSON_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY_SCHEMA}}

any_temperature = pytest.mark.parametrize("temperature", [0.0, 1.5])


class TestGrammars:
    @any_temperature
    def test_json_schema(self, chat, temperature):
        response = chat(
            response_format=JSON_FORMAT, max_tokens=120, temperature=temperature, seed=1
        )
        assert response.choices[0].finish_reason == "stop"
        answer = json.loads(response.choices[0].message.content)
        jsonschema.validate(answer, CITY_SCHEMA)

    def test_json_schema_in_a_stream(self, chat):
        options = {"response_format": JSON_FORMAT, "max_tokens": 120}
        whole = chat(**options).choices[0].message.content
        chunks = [chunk.choices[0].delta.content or "" for chunk in chat(stream=True, **options)]
        assert "".join(chunks) == whole
        assert len(chunks) > 5

    def test_any_json(self, chat, reference):
        closing = reference.tokenizer.encode("}")
        response = chat(
            response_format={"type": "json_object"},
            max_tokens=60,
            logit_bias={str(token): 50.0 for token in closing},  # ends as soon as it may
        )
        assert response.choices[0].finish_reason == "stop"
        assert isinstance(json.loads(response.choices[0].message.content), dict)

    @any_temperature
    def test_regex(self, complete, temperature):
        pattern = r"\d{3}-[a-f]{4}(!|\?)"
        texts = [
            complete("Code: ", structured_outputs={"regex": pattern}, **options).choices[0].text
            for options in ({"temperature": temperature, "seed": seed} for seed in range(3))
        ]
        for text in texts:
            assert re.fullmatch(pattern, text)
        assert (len({*texts}) == 1) == (temperature == 0.0)

    def test_choice_is_the_likeliest_first_token(self, complete, reference):
        prompt = reference.tokenizer.encode("The capital of France is")
        logits = reference.logits(prompt)[0]
        words = [" London", " Paris", " Rome"]
        ids = [reference.tokenizer.encode(word) for word in words]
        assert all(len(tokens) == 1 for tokens in ids)
        expected = max(words, key=lambda word: logits[ids[words.index(word)][0]])
        choice = complete(prompt, structured_outputs={"choice": words}).choices[0]
        assert (choice.text, choice.finish_reason) == (expected, "stop")

    @any_temperature
    def test_grammar(self, complete, temperature):
        grammar = 'root ::= "SELECT " column " FROM t" [1-3]\ncolumn ::= "name" | "age" | "*"'
        choice = complete(
            "A query: ", structured_outputs={"grammar": grammar}, temperature=temperature, seed=2
        ).choices[0]
        assert re.fullmatch(r"SELECT (name|age|\*) FROM t[1-3]", choice.text)
        assert choice.finish_reason == "stop"

    def test_several_answers_each_obey(self, complete):
        options = {"temperature": 1.5, "n": 4, "seed": 3}
        choices = complete("Code: ", structured_outputs={"regex": "[a-z]{6}"}, **options).choices
        assert all(re.fullmatch("[a-z]{6}", choice.text) for choice in choices)
        assert len({choice.text for choice in choices}) > 1

    def test_with_penalties_and_logprobs(self, complete):
        choice = complete(
            "Digits: ",
            structured_outputs={"regex": "[0-9]{12}"},
            frequency_penalty=2.0,
            logprobs=1,
            logit_bias={"300": 100.0},
        ).choices[0]
        assert re.fullmatch("[0-9]{12}", choice.text)
        assert len(choice.logprobs.token_logprobs) == len(choice.token_ids)

    def test_responses(self, client, server):
        response = client.responses.create(
            model=server.name,
            input=QUESTION,
            max_output_tokens=120,
            temperature=0,
            text={"format": {"type": "json_schema", "name": "city", "schema": CITY_SCHEMA}},
        )
        jsonschema.validate(json.loads(response.output_text), CITY_SCHEMA)


WEATHER = {
    "name": "get_weather",
    "strict": True,  # else vLLM leaves the arguments open
    "description": "Current weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", "Rome"]},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
}
CLOCK = {
    "name": "get_time",
    "strict": True,
    "description": "Time of day",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
SCHEMAS = {tool["name"]: tool["parameters"] for tool in (WEATHER, CLOCK)}
TOOLS = [{"type": "function", "function": tool} for tool in (WEATHER, CLOCK)]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]


def check_call(name, arguments):
    jsonschema.validate(json.loads(arguments), SCHEMAS[name])


class TestTools:
    @pytest.fixture
    def call(self, chat):
        def ask(**options):
            return chat(messages=ASK_WEATHER, tools=TOOLS, max_tokens=100, **options)

        return ask

    @any_temperature
    def test_required(self, call, temperature):
        options = {"temperature": temperature, "seed": 1, "parallel_tool_calls": False}
        choice = call(tool_choice="required", **options).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        for tool_call in choice.message.tool_calls:
            check_call(tool_call.function.name, tool_call.function.arguments)

    def test_named(self, call):
        named = {"type": "function", "function": {"name": "get_time"}}
        choice = call(tool_choice=named).choices[0]
        (tool_call,) = choice.message.tool_calls
        assert tool_call.function.name == "get_time"
        check_call("get_time", tool_call.function.arguments)

    def test_auto_finds_a_call_in_the_text(self, call):
        arguments = '{"city": "Paris", "unit": "celsius"}'
        said = f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'
        choice = call(
            tool_choice="auto", extra_body={"structured_outputs": {"choice": [said]}}
        ).choices[0]
        (tool_call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls"
        assert tool_call.function.name == "get_weather"
        assert json.loads(tool_call.function.arguments) == json.loads(arguments)

    def test_auto_without_a_call_is_text(self, call):
        choice = call(
            tool_choice="auto", extra_body={"structured_outputs": {"choice": ["It rains."]}}
        ).choices[0]
        assert choice.message.content == "It rains."
        assert not choice.message.tool_calls
        assert choice.finish_reason == "stop"

    def test_none_is_text(self, call):
        choice = call(tool_choice="none").choices[0]
        assert choice.message.content
        assert not choice.message.tool_calls

    @pytest.mark.parametrize("tool_choice", ["required", "named"])
    def test_stream(self, call, tool_choice):
        if tool_choice == "named":
            tool_choice = {"type": "function", "function": {"name": "get_weather"}}
        (whole, *_) = call(tool_choice=tool_choice).choices[0].message.tool_calls
        name, arguments = "", ""
        for chunk in call(tool_choice=tool_choice, stream=True):
            for delta in chunk.choices[0].delta.tool_calls or []:
                if delta.index == 0:
                    name += delta.function.name or ""
                    arguments += delta.function.arguments or ""
        assert name == whole.function.name
        assert json.loads(arguments) == json.loads(whole.function.arguments)

    def test_the_answer_of_a_tool_is_read(self, chat, reference):
        messages = [
            *ASK_WEATHER,
            {"role": "assistant", "content": "I look it up."},
            {"role": "tool", "content": "Rain, 12 degrees.", "tool_call_id": "call-1"},
        ]
        response = chat(messages=messages, extra_body={"return_token_ids": True})
        answer = response.choices[0].token_ids
        assert "Rain, 12 degrees." in reference.tokenizer.decode(response.prompt_token_ids)
        assert answer == reference.choices(response.prompt_token_ids, answer).token_ids

    def test_responses(self, client, server):
        response = client.responses.create(
            model=server.name,
            input=ASK_WEATHER,
            tools=[{"type": "function", **tool} for tool in (WEATHER, CLOCK)],
            tool_choice="required",
            max_output_tokens=100,
            temperature=0,
        )
        calls = [item for item in response.output if item.type == "function_call"]
        assert calls
        for item in calls:
            check_call(item.name, item.arguments)

    def test_messages(self, messages_client, server):
        tools = [
            {"name": tool["name"], "strict": True, "input_schema": tool["parameters"]}
            for tool in (WEATHER, CLOCK)
        ]
        message = messages_client.messages.create(
            model=server.name,
            messages=ASK_WEATHER,
            tools=tools,
            tool_choice={"type": "tool", "name": "get_weather"},
            max_tokens=100,
            extra_body={"temperature": 0},
        )
        (block,) = [block for block in message.content if block.type == "tool_use"]
        assert block.name == "get_weather"
        jsonschema.validate(block.input, WEATHER["parameters"])
        assert message.stop_reason == "tool_use"
