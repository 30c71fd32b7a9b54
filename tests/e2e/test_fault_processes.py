# SPDX-License-Identifier: Apache-2.0
"""Two servers on one machine, which are killed, restarted and starved: none harms the other."""

import asyncio
import contextlib
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.e2e.fault_clients import (
    MOST_SECONDS,
    Ask,
    Outcomes,
    ask_all,
    ask_meanwhile,
    ask_until_it_dies,
    known_asks,
)
from tests.e2e.fault_server import lift_limit, limit_memory, shared_memory
from tests.e2e.server import Server
from tests.e2e.test_dev_endpoints import call
from tests.e2e.test_faults import check_wake_up_fails
from tests.e2e.test_server import wait_until_running
from tests.plugin.tiny_model import write_tiny_llama

ARGUMENTS = ("--dtype", "float32", "--kv-cache-memory-bytes", "64M", "--max-model-len", "2048")
ARGUMENTS += ("--enable-sleep-mode",)
VARIABLES = {"VLLM_METAL_PREFIX_CACHE": "1", "VLLM_SERVER_DEV_MODE": "1"}
# Steps of long prompts need some 50 MB.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
BYTES_PER_TOKEN = 4096  # of the cache
LIMITS_MEMORY = pytest.mark.skipif(
    sys.platform != "linux", reason="needs a limit of a process's memory"
)


@pytest.fixture(scope="module")
def folders():
    """Make folders for the temporary files of each; sockets need short names."""
    made = {name: Path(tempfile.mkdtemp(prefix="vllm-")) for name in ("paged", "managed")}
    yield made
    for folder in made.values():
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def servers(tmp_path_factory, folders):
    """Start a server of each mode at the same time."""
    folder = tmp_path_factory.mktemp("processes")
    model = write_tiny_llama(folder / "model", **SHAPE)
    made = {}
    with contextlib.ExitStack() as stack:
        for name, temporary in folders.items():
            variables = VARIABLES | {"TMPDIR": str(temporary)}
            variables["VLLM_METAL_USE_PAGED_ATTENTION"] = "01"[name == "paged"]
            made[name] = Server(model, folder / f"{name}.log", *ARGUMENTS, variables=variables)
            made[name].start()
            stack.callback(made[name].stop)
        for server in made.values():
            server.wait_until_ready()
        yield made


@pytest.fixture(scope="module")
def paged(servers):
    return servers["paged"]


@pytest.fixture(scope="module")
def managed(servers):
    return servers["managed"]


@pytest.fixture(scope="module")
def asks(managed):
    return asyncio.run(known_asks(managed, 12))


def check_answers(server, asks):
    outcomes = Outcomes()
    asyncio.run(ask_all(server, asks, outcomes))
    outcomes.check(right=len(asks))


def test_both_at_once(paged, managed, asks):
    async def both():
        outcomes = Outcomes()
        await asyncio.gather(*(ask_all(one, asks, outcomes) for one in (paged, managed) * 3))
        outcomes.check(right=6 * len(asks))

    asyncio.run(both())


def test_the_engine_is_killed(paged, managed, asks, folders):
    """The other server does not notice, and nothing keeps the killed one from starting again."""
    engine, server = paged.engine(), psutil.Process(paged.pid)
    # Nothing removes it when its owner is killed.
    assert shared_memory([server, *server.children(recursive=True)]) == set()

    def kill():
        wait_until_running(paged, 8)
        engine.kill()

    ask_until_it_dies(paged, [Ask([5, 6, 7], 1900)] * 8, kill)
    assert not psutil.pid_exists(engine.pid)
    assert list(folders["paged"].iterdir()) == []
    check_answers(managed, asks)
    paged.start()
    paged.wait_until_ready()
    check_answers(paged, asks)


def test_restart_under_load(managed, asks):
    """Clients that ask again and again are answered in the end, and never wait long."""
    outcomes = Outcomes()

    async def restart():
        await asyncio.sleep(1)
        await asyncio.to_thread(stop_and_start)

    def stop_and_start():
        assert managed.send_signal(signal.SIGTERM, MOST_SECONDS) == (0, [])
        managed.start()
        managed.wait_until_ready()

    asyncio.run(ask_meanwhile(managed, asks, outcomes, restart()))
    outcomes.check()
    assert outcomes.right >= 12
    assert outcomes.errors


@LIMITS_MEMORY
def test_waking_up_without_memory(managed, asks):
    """It is said and can be tried again."""
    call(managed, "sleep?level=2")
    engine = managed.engine()
    limit_memory(engine)
    check_wake_up_fails(managed, r"\[memory\] cannot allocate")
    lift_limit(engine)
    call(managed, "wake_up")
    check_answers(managed, asks)


@LIMITS_MEMORY
def test_a_step_without_memory(paged, managed, asks):
    """It ends the server; the other goes on."""
    limit_memory(paged.engine())
    prompts = [[word] * 1900 for word in (5, 6, 7)]
    ask_until_it_dies(paged, [Ask(prompt, 8) for prompt in prompts], lambda: None)
    assert "[memory] cannot allocate" in paged.text()
    check_answers(managed, asks)


@LIMITS_MEMORY
def test_a_cache_without_memory(managed, asks):
    """Comes last, as both servers have ended then: answers grow until the cache has to."""
    check_answers(managed, asks)  # with what it holds for good
    growing = [Ask([word] * 150, 1500) for word in range(5, 17)]

    def limit():
        wait_until_running(managed, len(growing))
        limit_memory(managed.engine())

    before = len(managed.text())
    ask_until_it_dies(managed, growing, limit)
    messages = re.findall(r"\[memory\] cannot allocate (\d+) bytes", managed.text()[before:])
    # Nothing else is as large in steps of a token each.
    assert max(map(int, messages)) > len(growing) * 150 * BYTES_PER_TOKEN
