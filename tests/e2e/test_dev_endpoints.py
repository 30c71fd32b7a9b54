# SPDX-License-Identifier: Apache-2.0
"""Endpoints that vLLM has only when asked for: sleep mode and the profiler.

Memory is really given back, and the server says the same after waking up. The MLX-managed KV
cache has its prefix cache here.
"""

import concurrent.futures
import json
import re
import time
import urllib.error
import urllib.request
import uuid

import openai
import psutil
import pytest

from tests.e2e.server import Server
from tests.e2e.test_server import metrics
from tests.e2e.test_variables import mebibytes

# Without the first vLLM has no /sleep; with the second each step logs MLX's peak.
VARIABLES = {
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_METAL_DEBUG": "1",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "1",  # the last test asks for its health then
    "VLLM_METAL_PREFIX_CACHE": "1",
    "VLLM_METAL_PREFIX_CACHE_FRACTION": "0.005",
}


# The paged cache takes all memory unless told otherwise.
PAGED_ARGUMENTS = ("--kv-cache-memory-bytes", "200M")


@pytest.fixture(scope="module")
def folder(kv_cache_mode, tmp_path_factory):
    return tmp_path_factory.mktemp(f"dev-endpoints-{kv_cache_mode}")


@pytest.fixture(scope="module")
def server(default_model, folder, kv_cache_mode, mode_variables):
    profiler = {
        "profiler": "torch",
        "torch_profiler_dir": str(folder / "traces"),
        "ignore_frontend": True,
    }
    arguments = (
        "--enable-sleep-mode",
        *("--max-model-len", "2048", "--enable-prompt-tokens-details"),
        *("--profiler-config", json.dumps(profiler)),
    )
    arguments += PAGED_ARGUMENTS if kv_cache_mode == "paged" else ()
    log = folder / "server.log"
    with Server(default_model, log, *arguments, variables=VARIABLES | mode_variables) as running:
        yield running


def call(server, path, method="POST", body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/{path}", data, method=method)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read()


def is_sleeping(server):
    return json.loads(call(server, "is_sleeping", "GET"))["is_sleeping"]


def answer(server):
    prompt = [1000 + 7 * i for i in range(600)]
    client = server.client()
    # Always computed whole: float16 rounds otherwise after a known prefix.
    extra = {"ignore_eos": True, "cache_salt": uuid.uuid4().hex}
    result = client.completions.create(
        model=server.name, prompt=prompt, max_tokens=24, temperature=0, extra_body=extra
    )
    return result.choices[0].text


def engine_memory(server):
    """Memory of the engine's process that no file backs, in MiB."""
    processes = psutil.Process(server.pid).children(recursive=True)
    return max(p.memory_info().rss - p.memory_info().shared for p in processes) >> 20


def test_the_peak_is_what_was_planned(server):
    """More requests than the cache holds, in steps as large as they may be."""
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert all(pool.map(lambda _: answer(server), range(12)))
    log = server.text()
    planned, weights = mebibytes(log, "total"), mebibytes(log, "model")
    peak = max(int(number) for number in re.findall(r"(\d+) MiB peak", log))
    assert weights + 100 < peak <= 1.1 * planned


@pytest.mark.parametrize("level", [1, 2])
def test_memory_is_given_back_and_answers_come_back(server, level):
    expected = answer(server)
    awake = engine_memory(server)
    call(server, f"sleep?level={level}")
    assert is_sleeping(server)
    asleep = engine_memory(server)
    assert awake - asleep > 80  # the weights are 94 MiB
    call(server, "wake_up")
    assert not is_sleeping(server)
    assert answer(server) == expected


def test_waking_up_in_parts(server):
    expected = answer(server)
    call(server, "sleep?level=2")
    call(server, "wake_up?tags=weights")
    assert is_sleeping(server)
    call(server, "wake_up?tags=kv_cache")
    assert not is_sleeping(server)
    assert answer(server) == expected


def cached_tokens(server, prompt):
    completion = server.client().completions.create(
        model=server.name, prompt=prompt, max_tokens=4, temperature=0
    )
    return completion.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize(
    "path",
    [
        "reset_prefix_cache",
        "reset_prefix_cache?reset_external=true",
        "reset_prefix_cache?reset_running_requests=true&reset_external=true",
        "sleep",
    ],
)
def test_prefixes_are_known_until_they_are_forgotten(server, kv_cache_mode, path):
    kind = "prefix_cache" if kv_cache_mode == "paged" else "external_prefix_cache"
    prompt = [2000 + 7 * i for i in range(100)]
    before = metrics(server)[f"vllm:{kind}_hits_total"]
    assert [cached_tokens(server, prompt[:length]) for length in (90, 100)] == [0, 80]
    assert metrics(server)[f"vllm:{kind}_hits_total"] - before == 80
    call(server, path)
    if path == "sleep":
        call(server, "wake_up")
    assert cached_tokens(server, prompt) == 0
    call(server, "reset_prefix_cache")


def test_the_log_has_the_figures(server):
    assert re.search(r"Freed \d+\.\d\d MiB, .* are in use\.", server.text())


def test_a_profile_is_a_trace_of_steps(server, folder):
    call(server, "reset_prefix_cache")
    call(server, "start_profile")
    answer(server)
    call(server, "stop_profile")
    (file,) = (folder / "traces").iterdir()
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X"]
    steps = [event for event in events if event["name"] == "forward"]
    assert 24 <= len(steps) <= 26  # one may be under way when the last token is known
    assert steps[0]["args"] == {"requests": 1, "tokens": 600}
    assert all(step["args"]["tokens"] <= 1 for step in steps[1:])
    ends = [step["ts"] + step["dur"] for step in steps]
    assert all(end <= step["ts"] + 1 for end, step in zip(ends, steps[1:], strict=False))


def health(server):
    try:
        call(server, "health", "GET")
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_health_is_bad_when_the_worker_is_broken(server):
    """Comes last: nothing works after it."""
    assert health(server) == 200
    call(server, "collective_rpc", body={"method": "shutdown"})
    with pytest.raises(openai.InternalServerError):
        answer(server)
    deadline = time.monotonic() + 20
    while (status := health(server)) == 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert status == 503
    assert "the worker was shut down" in server.text()
