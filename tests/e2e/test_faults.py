# SPDX-License-Identifier: Apache-2.0
"""Clients, clocks and files that misbehave: others are answered as before, nothing is left over."""

import asyncio
import datetime
import json
import os
import re
import time
import urllib.error

import pytest

from tests.e2e.fault_clients import (
    LONG,
    MOST_SECONDS,
    Ask,
    Outcomes,
    ask_all,
    ask_meanwhile,
    ask_until_it_dies,
    known_asks,
    open_stream,
    session,
    vanish,
)
from tests.e2e.fault_server import Clock, WorkingMemory
from tests.e2e.server import Server
from tests.e2e.test_dev_endpoints import call, health, is_sleeping
from tests.e2e.test_server import metrics, wait_until_idle
from tests.plugin.tiny_model import VOCAB_SIZE, write_tiny_llama

FULL = os.environ.get("VLLM_METAL_TEST_FAULTS") == "full"  # `make test-faults`
MODES = ("mlx-managed", "paged")
EXAMPLES = 100 if FULL else 4  # for each endpoint, fitting and unfitting
NUM_CLIENTS = 200
NUM_SLOW = 4
DAY = 86400.0


@pytest.fixture(scope="module", params=MODES)
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def folder(mode, tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def model(folder):
    return write_tiny_llama(folder / "model")


@pytest.fixture(scope="module")
def clock(folder):
    return Clock(folder)


@pytest.fixture(scope="module")
def working_memory(folder):
    return WorkingMemory(folder)


@pytest.fixture(scope="module")
def server(mode, model, clock, working_memory, folder):
    arguments = ("--dtype", "float32", "--kv-cache-memory-bytes", "64M", "--enable-sleep-mode")
    arguments += ("--max-logprobs", "-1")
    variables = {
        "VLLM_METAL_USE_PAGED_ATTENTION": str(MODES.index(mode)),
        "VLLM_METAL_PREFIX_CACHE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_MAX_N_SEQUENCES": "8",  # of a request
        **clock.variables,
        **working_memory.variables,
    }
    with Server(model, folder / "server.log", *arguments, variables=variables) as running:
        yield running


@pytest.fixture(scope="module")
def asks(server):
    return asyncio.run(known_asks(server, 20))


@pytest.fixture(autouse=True)
def all_is_well_after_it(server, asks):
    yield
    wait_until_idle(server, MOST_SECONDS)
    outcomes = Outcomes()
    asyncio.run(ask_all(server, asks[:4], outcomes))
    outcomes.check(right=4)


def test_half_of_200_clients_vanish(server, mode, asks):
    before = metrics(server)["vllm:generation_tokens_total"]
    half = NUM_CLIENTS // 2
    outcomes = Outcomes()

    async def crowd():
        async with session() as http:
            leaving = (vanish(http, server, after_lines=index % 8) for index in range(half))
            await asyncio.gather(ask_all(server, asks * (half // len(asks)), outcomes), *leaving)

    asyncio.run(crowd())
    outcomes.check(right=half)
    wait_until_idle(server, MOST_SECONDS)
    after = metrics(server)
    generated = after["vllm:generation_tokens_total"] - before
    # Those that left had not come to their end: each had asked for four answers.
    assert generated < half * (asks[0].max_tokens + 2 * LONG.max_tokens)
    hits = "prefix_cache_hits" if mode == "paged" else "external_prefix_cache_hits"
    assert after[f"vllm:{hits}_total"] > 0  # which all faults here have to do with


def test_slow_readers(server, asks):
    """Nobody waits for clients that take a byte a second of streams of megabytes."""
    options = {"prompt": [LONG.prompt] * 4, "logprobs": VOCAB_SIZE}
    slow = [open_stream(server, LONG, **options) for _ in range(NUM_SLOW)]
    outcomes = Outcomes()
    for _ in range(4):
        assert [len(connection.recv(1)) for connection in slow] == [1] * NUM_SLOW
        asyncio.run(ask_all(server, asks, outcomes))
        time.sleep(1)
    outcomes.check(right=4 * len(asks))
    wait_until_idle(server, MOST_SECONDS)
    patient, *others = slow
    for connection in others:
        connection.close()
    answer = b"".join(iter(lambda: patient.recv(1 << 16), b""))
    assert len(answer) > 3 << 20  # the system holds some 2 MB for a client; the rest had to wait
    assert b"data: [DONE]" in answer
    texts = re.findall(rb'"text":"([^"]*)"', answer)  # a chunk has several tokens by now
    assert len(b" ".join(texts).split()) == 4 * LONG.max_tokens


def test_the_clock_is_set(server, asks, clock):
    """By years, forth and back, while requests run."""
    outcomes = Outcomes()

    async def set_the_clock():
        for days in (400, -400, 1, -1, 4000, -4000, 0) * 2:
            clock.set(days * DAY)
            await asyncio.sleep(0.3)

    asyncio.run(ask_meanwhile(server, asks, outcomes, set_the_clock()))
    outcomes.check(right=outcomes.right)
    clock.set(400 * DAY)
    answer = call(server, "v1/completions", body=asks[0].body(server))
    clock.set(0)
    now = datetime.datetime.now().timestamp()
    assert json.loads(answer)["created"] > now + 399 * DAY  # the server did see it


def test_files_of_the_model_change_while_it_serves(server, model, asks):
    """Nothing reads them until the server wakes up; what is wrong then can be mended."""
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    config = (model / "config.json").rename(model / "config.json.away")
    outcomes = Outcomes()
    asyncio.run(ask_all(server, asks, outcomes))
    outcomes.check(right=len(asks))
    call(server, "sleep?level=1")
    check_wake_up_fails(server, rf"{re.escape(str(weights))}: entry .* ends at byte")
    weights.unlink()
    check_wake_up_fails(server, re.escape(str(model)))
    weights.write_bytes(content)
    config.rename(model / "config.json")
    call(server, "wake_up")
    assert not is_sleeping(server)


def check_wake_up_fails(server, message):
    before = len(server.text())
    with pytest.raises(urllib.error.HTTPError, match="HTTP Error 5"):
        call(server, "wake_up")
    assert re.search(message, server.text()[before:])
    assert is_sleeping(server)
    assert health(server) == 200


# vLLM's own, by endpoint: what it says with 5xx.
KNOWN_ERRORS = {
    # Asks for a model of another kind; 501 says so.
    "POST /v1/systemone": "does not support the structured decision API",
    # A validator takes `structured_outputs` for an object before its type is checked.
    "POST /v1/chat/completions": r"'\w+' object has no attribute 'get'",
}


def test_a_flood_of_malformed_requests(server):
    """Made from vLLM's OpenAPI document; none ends in an error of the server."""
    from tests.e2e.malformed import Flood

    found = Flood(server, KNOWN_ERRORS, EXAMPLES)
    found.run()
    print(found.statuses)
    assert found.server_errors == []
    assert sum(found.statuses.values()) > 100
    assert found.statuses[200] > 0
    assert found.statuses[400] > 0


class TestItsEnd:
    """Comes last: the server does not outlive it."""

    @pytest.fixture(autouse=True)
    def all_is_well_after_it(self):
        """Expect nothing of it."""

    def test_kernels_without_working_memory(self, server, working_memory):
        if not working_memory.variables:
            pytest.skip("needs Linux and a C++ compiler")
        working_memory.take_away()
        asks = [Ask([word] * 10, 490) for word in range(5, 13)]
        ask_until_it_dies(server, asks, lambda: None)
        assert "cannot allocate its working memory" in server.text()
