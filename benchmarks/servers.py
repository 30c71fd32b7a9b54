# SPDX-License-Identifier: Apache-2.0
"""OpenAI servers to drive: `vllm serve` with our plugin, and vLLM's own CPU back end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import peers
from vllm_metal.selftest.processes import free_port

START_SECONDS = 300
STOP_SECONDS = 30
MODEL = "model"
KV_CACHE_BYTES = 1 << 30  # of either server
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}


class Server:
    """A server in a process group of its own; `with` starts it, waits until ready, stops it."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str]) -> None:
        self.port = port
        self._command = command
        self.environment = os.environ | QUIET | environment
        # What a build of vLLM wants, and what would switch our plugin off.
        self.environment.pop("VLLM_TARGET_DEVICE", None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile("w+")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self._command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self.environment,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        self.seconds_to_ready = time.monotonic() - self.started
        return self

    def _wait_until_ready(self) -> None:
        while time.monotonic() < self.started + START_SECONDS:
            if self.process.poll() is not None:
                raise RuntimeError(f"The server ended while starting:\n{self.log()[-3000:]}")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise RuntimeError(f"No server after {START_SECONDS} s:\n{self.log()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()


def ours(
    model: Path,
    threads: int,
    *arguments: str,
    kv_cache_bytes: int = KV_CACHE_BYTES,
    paged: bool = False,
    prefix_cache: bool | None = None,
) -> Server:
    port = free_port()
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
    command += [*_address(port), *arguments, "--kv-cache-memory-bytes", str(kv_cache_bytes)]
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "VLLM_METAL_USE_PAGED_ATTENTION": "01"[paged],
        "VLLM_METAL_PREFIX_CACHE": "" if prefix_cache is None else "01"[prefix_cache],
    }
    return Server(command, port, variables)


def vllm_cpu(model: Path, threads: int, *arguments: str) -> Server:
    """vLLM's CPU back end as its documentation advises: bound threads, Intel's OpenMP.

    Left alone it would keep one core free and compute on the others.
    """
    python = peers.peer_env.interpreter_of("torch-backend")
    assert python is not None
    environment = {
        "VLLM_PLUGINS": "",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_BYTES >> 30),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, usable_cores()[:threads])),
    }
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    if openmp.exists():
        environment["LD_PRELOAD"] = str(openmp)
    port = free_port()
    # Its command `vllm` asks for the version of a package of that name, which this one is not.
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--dtype", "bfloat16", *_address(port), *arguments]
    return Server(command, port, environment)


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


def _address(port: int) -> list[str]:
    return ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL]
