# SPDX-License-Identifier: Apache-2.0
"""OpenAI servers to drive: `vllm serve` with our plugin, and vLLM's own CPU back end."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import peers
from vllm_metal.selftest.server_process import ServerProcess, vllm_program

MODEL = "model"
KV_CACHE_BYTES = 1 << 30  # of either server
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


class Server(ServerProcess):
    """A server of ours or of vLLM's own CPU back end."""

    stop_seconds = 30.0

    def __init__(self, *command: str, variables: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        log = Path(self._folder.name) / "server.log"
        super().__init__(log, variables=QUIET | variables)
        self.command = [*command, *self.address(MODEL)]

    def environment(self) -> dict[str, str]:
        environment = super().environment()
        # What a build of vLLM wants, and what would switch our plugin off.
        environment.pop("VLLM_TARGET_DEVICE", None)
        return environment


def ours(
    model: Path,
    threads: int,
    *arguments: str,
    kv_cache_bytes: int = KV_CACHE_BYTES,
    paged: bool = False,
    prefix_cache: bool | None = None,
) -> Server:
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_METAL_USE_PAGED_ATTENTION": "01"[paged],
        "VLLM_METAL_PREFIX_CACHE": "" if prefix_cache is None else "01"[prefix_cache],
    }
    command = [*vllm_program(), "serve", str(model)]
    memory = ["--kv-cache-memory-bytes", str(kv_cache_bytes)]
    return Server(*command, *arguments, *memory, variables=variables)


def vllm_cpu(model: Path, threads: int, *arguments: str) -> Server:
    """vLLM's CPU back end as its documentation advises: bound threads, Intel's OpenMP.

    Left alone it would keep one core free and compute on the others.
    """
    python = peers.peer_env.interpreter_of("torch-backend")
    assert python is not None
    variables = {
        "VLLM_PLUGINS": "",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_BYTES >> 30),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, usable_cores()[:threads])),
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        variables["LD_PRELOAD"] = str(openmp)
    # Its command `vllm` asks for the version of a package of that name, which this one is not.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return Server(*command, "--dtype", "bfloat16", *arguments, variables=variables)


def in_turns(
    running: dict[str, Server], runs: int, run: Callable[[Server, int], dict[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Return each server's figures of all runs, by name; one more before them does not count.

    `run` drives a server for the run of that number.
    """
    result: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in running}
    for number in range(runs + 1):
        for name, server in running.items():
            figures = run(server, number)
            for figure, value in figures.items() if number > 0 else ():
                result[name][figure].append(value)
    return result


def usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
