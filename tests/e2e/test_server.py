# SPDX-License-Identifier: Apache-2.0
"""What stands around the answers: other routes, metrics, many clients, clients that vanish."""

import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.prompts import QUESTION

PROMPT = "The capital of France is"


def get(server, path):
    with urllib.request.urlopen(f"{server.url}{path}", timeout=10) as response:
        return response.status, response.read().decode()


def metrics(server):
    """Return all samples; the labels of one name are summed, a finish reason is part of it."""
    samples: dict[str, float] = {}
    for line in get(server, "/metrics")[1].splitlines():
        match = re.fullmatch(r"(vllm:\w+)(\{.*\})? ([0-9.e+-]+)", line)
        if match:
            name, labels, value = match.groups()
            reason = re.search(r'finished_reason="(\w+)"', labels or "")
            name += f":{reason[1]}" if reason else ""
            samples[name] = samples.get(name, 0.0) + float(value)
    return samples


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_idle(server):
    now = metrics(server)
    return (
        now["vllm:num_requests_running"] == 0
        and now["vllm:num_requests_waiting"] == 0
        and now["vllm:kv_cache_usage_perc"] == 0
    )


def test_model_is_listed(client, server):
    (model,) = client.models.list().data
    assert model.id == server.name
    assert model.max_model_len == 2048


def test_health_and_version(server):
    import vllm

    assert get(server, "/health")[0] == 200
    assert get(server, "/ping")[0] == 200
    assert json.loads(get(server, "/version")[1]) == {"version": vllm.__version__.split("+")[0]}


def test_tokenize_and_back(client, server, reference):
    def post(path, **body):
        return client.post(f"/../{path}", cast_to=object, body={"model": server.name, **body})

    text = "Übersetze: 你好 🙂"
    tokens = reference.tokenizer.encode(text)
    assert post("tokenize", prompt=text)["tokens"] == tokens
    assert post("tokenize", prompt=text)["count"] == len(tokens)
    assert post("tokenize", prompt=text)["max_model_len"] == 2048
    assert post("tokenize", messages=QUESTION)["tokens"] == reference.chat_tokens(QUESTION)
    assert post("detokenize", tokens=tokens)["prompt"] == text


def test_metrics_count(server, complete):
    wait_until(lambda: is_idle(server))
    before = metrics(server)
    response = complete(PROMPT, n=3, temperature=1.0, max_tokens=5, ignore_eos=True)
    assert [choice.finish_reason for choice in response.choices] == ["length"] * 3
    usage = response.usage

    def rise(name):
        return metrics(server)[name] - before[name]

    wait_until(lambda: rise("vllm:request_success_total:length") == 3)
    assert rise("vllm:generation_tokens_total") == usage.completion_tokens == 15
    assert rise("vllm:prompt_tokens_total") == 3 * usage.prompt_tokens  # one for each answer
    assert rise("vllm:request_success_total:error") == 0
    assert rise("vllm:num_preemptions_total") == 0
    assert rise("vllm:time_to_first_token_seconds_count") == 3


def test_hundred_clients(server, complete, reference):
    """A hundred prompts at once, every answer the one that transformers gives."""
    prompts = [
        reference.tokenizer.encode(f"{number} plus {number + 1} is") for number in range(20)
    ] * 5
    with ThreadPoolExecutor(len(prompts)) as pool:
        responses = list(
            pool.map(lambda prompt: complete(prompt, max_tokens=8, ignore_eos=True), prompts)
        )
    for prompt, response in zip(prompts, responses, strict=True):
        answer = response.choices[0].token_ids
        assert len(answer) == 8
        assert answer == reference.choices(prompt, answer).token_ids
    wait_until(lambda: is_idle(server))


class TestClientsThatVanish:
    """Their requests end, and the memory of these is free for others."""

    NUM_CLIENTS = 8

    @pytest.fixture(autouse=True)
    def comes_back(self, server, chat):
        wait_until(lambda: is_idle(server))
        before = metrics(server)["vllm:generation_tokens_total"]
        yield
        wait_until(lambda: is_idle(server))
        generated = metrics(server)["vllm:generation_tokens_total"] - before
        assert generated < self.NUM_CLIENTS * 1000  # they had not come to their end
        assert "Paris" in chat().choices[0].message.content

    def wait_until_running(self, server):
        wait_until(lambda: metrics(server)["vllm:num_requests_running"] == self.NUM_CLIENTS)
        assert metrics(server)["vllm:kv_cache_usage_perc"] > 0

    def test_streams(self, server, chat):
        options = {"max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
        with ThreadPoolExecutor(self.NUM_CLIENTS) as pool:
            streams = list(pool.map(lambda _: chat(**options), range(self.NUM_CLIENTS)))
        for stream in streams:
            next(iter(stream))
        self.wait_until_running(server)
        for stream in streams:
            stream.close()

    def test_without_a_stream(self, server):
        """The connections break while the server has sent nothing yet."""
        import http.client

        body = {"model": server.name, "prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True}
        connections = []
        for _ in range(self.NUM_CLIENTS):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            connections.append(connection)
        self.wait_until_running(server)
        for connection in connections:
            connection.close()

    def test_of_messages(self, server, messages_client):
        streams = [
            messages_client.messages.create(
                model=server.name,
                messages=QUESTION,
                max_tokens=1500,
                stream=True,
                extra_body={"temperature": 2.0, "logit_bias": {"2": -100, "0": -100}},
            )
            for _ in range(self.NUM_CLIENTS)
        ]
        self.wait_until_running(server)
        for stream in streams:
            stream.close()
