# SPDX-License-Identifier: Apache-2.0
"""What stands around the answers: other routes, metrics, many clients, clients that vanish."""

import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.e2e.prompts import QUESTION

PROMPT = "The capital of France is"


def get(server, path):
    with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as response:
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


STATE = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


def wait_for_metrics(server, condition, seconds=30.0):
    """Wait until the condition holds of the samples, which a failure shows."""
    deadline = time.monotonic() + seconds
    while not condition(now := metrics(server)):
        if time.monotonic() >= deadline:
            shown = {name: now[name] for name in (*STATE, "vllm:generation_tokens_total")}
            raise AssertionError(f"waited {seconds:.0f} s in vain: {shown}")
        time.sleep(0.05)


def wait_until_idle(server, seconds=30.0):
    wait_for_metrics(server, lambda now: all(now[name] == 0 for name in STATE), seconds)


def wait_until_running(server, num_requests):
    wait_for_metrics(server, lambda now: now["vllm:num_requests_running"] == num_requests)


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
    wait_until_idle(server)
    before = metrics(server)
    response = complete(PROMPT, n=3, temperature=1.0, max_tokens=5, ignore_eos=True)
    assert [choice.finish_reason for choice in response.choices] == ["length"] * 3
    usage = response.usage

    def rise(name, now=None):
        return (now or metrics(server))[name] - before[name]

    wait_for_metrics(server, lambda now: rise("vllm:request_success_total:length", now) == 3)
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
    wait_until_idle(server)


@contextmanager
def all_closed(connections):
    """Close what is in the list at the end, also of a test that fails: the next wants it idle."""
    try:
        yield
    finally:
        with ExitStack() as stack:
            for connection in connections:
                stack.callback(connection.close)


class TestClientsThatVanish:
    """Their requests end, and the memory of these is free for others."""

    NUM_CLIENTS = 8

    @pytest.fixture(autouse=True)
    def comes_back(self, server, chat):
        wait_until_idle(server)
        before = metrics(server)["vllm:generation_tokens_total"]
        yield
        wait_until_idle(server)
        generated = metrics(server)["vllm:generation_tokens_total"] - before
        assert generated < self.NUM_CLIENTS * 1000  # they had not come to their end
        assert "Paris" in chat().choices[0].message.content

    def wait_until_running(self, server):
        wait_until_running(server, self.NUM_CLIENTS)
        assert metrics(server)["vllm:kv_cache_usage_perc"] > 0

    def test_streams(self, server, chat):
        options = {"max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
        streams = []
        with all_closed(streams):
            with ThreadPoolExecutor(self.NUM_CLIENTS) as pool:
                list(pool.map(lambda _: streams.append(chat(**options)), range(self.NUM_CLIENTS)))
            for stream in streams:
                next(iter(stream))
            self.wait_until_running(server)

    def test_without_a_stream(self, server):
        """The connections break while the server has sent nothing yet."""
        import http.client

        body = {"model": server.name, "prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True}
        headers = {"Content-Type": "application/json"}
        connections = []
        with all_closed(connections):
            for _ in range(self.NUM_CLIENTS):
                connection = http.client.HTTPConnection("127.0.0.1", server.port)
                connections.append(connection)
                connection.request("POST", "/v1/completions", json.dumps(body), headers)
            self.wait_until_running(server)

    def test_of_messages(self, server, messages_client):
        streams = []
        with all_closed(streams):
            for _ in range(self.NUM_CLIENTS):
                stream = messages_client.messages.create(
                    model=server.name,
                    messages=QUESTION,
                    max_tokens=1500,
                    stream=True,
                    extra_body={"temperature": 2.0, "logit_bias": {"2": -100, "0": -100}},
                )
                streams.append(stream)
            self.wait_until_running(server)
