# SPDX-License-Identifier: Apache-2.0
"""Two servers on one machine, which are killed, restarted and starved: none harms the other."""

import asyncio
import contextlib
import resource
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
    ask_once,
    known_asks,
    session,
)
from tests.e2e.fault_server import shared_memory
from tests.e2e.server import Server
from tests.e2e.test_server import wait_until_running
from tests.e2e.test_stop import check_port_is_free
from tests.plugin.tiny_model import write_tiny_llama

ARGUMENTS = ("--dtype", "float32", "--kv-cache-memory-bytes", "64M", "--max-model-len", "2048")
# Steps of long prompts need some 50 MB.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


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
            variables = {"TMPDIR": str(temporary)}
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


def ask_until_it_dies(server, asks, fault):
    """Ask, do harm, and expect every request to fail and the server to end, both in time."""
    outcomes = Outcomes()

    async def run():
        async with session() as http:
            asking = [
                asyncio.create_task(ask_once(http, server, ask, outcomes, stream=index % 2 == 0))
                for index, ask in enumerate(asks)
            ]
            await asyncio.to_thread(fault)
            await asyncio.gather(*asking)

    asyncio.run(run())
    outcomes.check()
    assert len(outcomes.errors) == len(asks)
    assert server.wait_for_exit(MOST_SECONDS) != 0
    check_port_is_free(server)
    assert "EngineDeadError: EngineCore encountered an issue" in server.tail(3)


def test_both_at_once(paged, managed, asks):
    async def both():
        outcomes = Outcomes()
        await asyncio.gather(*(ask_all(one, asks, outcomes) for one in (paged, managed) * 3))
        outcomes.check(right=6 * len(asks))

    asyncio.run(both())


def mapped_shared_memory(processes):
    """Names of the shared memory and semaphores that the processes have."""
    paths = [Path(file.path) for process in processes for file in process.memory_maps()]
    return {path.name for path in paths if path.parent == Path("/dev/shm")}


def test_the_engine_is_killed(paged, managed, asks, folders):
    """The other server does not notice, and nothing keeps the killed one from starting again."""
    engine = paged.engine()
    its_own = mapped_shared_memory([engine, *engine.children(recursive=True)])

    def kill():
        wait_until_running(paged, 8)
        engine.kill()

    ask_until_it_dies(paged, [Ask([5, 6, 7], 1900)] * 8, kill)
    assert not psutil.pid_exists(engine.pid)
    assert not its_own & shared_memory()
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of a process's memory")
def test_a_step_without_memory(paged, managed, asks):
    """Comes last: it ends one of the servers."""
    engine = paged.engine()
    limit = engine.memory_info().vms + (4 << 20)
    engine.rlimit(psutil.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    prompts = [[word] * 1900 for word in (5, 6, 7)]
    ask_until_it_dies(paged, [Ask(prompt, 8) for prompt in prompts], lambda: None)
    assert "[memory] cannot allocate" in paged.text()
    check_answers(managed, asks)
