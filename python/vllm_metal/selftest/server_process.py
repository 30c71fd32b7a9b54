# SPDX-License-Identifier: Apache-2.0
"""A server in a process group of its own: the self-test's, the tests' and the benchmarks'."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from vllm_metal.selftest.checks import CheckFailed
from vllm_metal.selftest.processes import free_port, how_it_ended, last_lines

_TAIL_LINES = 60


def vllm_program() -> list[str]:
    """Return the command `vllm` of this environment."""
    vllm = Path(sys.executable).with_name("vllm")
    return [str(vllm)] if vllm.exists() else [sys.executable, "-m", "vllm.entrypoints.cli.main"]


class ServerProcess:
    """An OpenAI server at a port of this machine, not started yet.

    `with` starts it, waits until it answers, and stops it; whatever happens, none of its processes
    is left. CheckFailed shows the end of the log. What it says, from all its starts, goes to `log`.
    """

    start_seconds = 400.0  # imports alone take a minute on a busy machine
    stop_seconds = 60.0

    def __init__(self, log: Path, variables: dict[str, str]) -> None:
        """Take the log and variables of the environment; set `command`, which needs the port."""
        self.log = log
        self.command: list[str] = []
        self.variables = variables
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.seconds_to_ready = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._started().pid

    def address(self, name: str) -> list[str]:
        """Return options of `vllm serve`: where, and under which name."""
        where = ["--host", "127.0.0.1", "--port", str(self.port)]
        return [*where, "--served-model-name", name]

    def environment(self) -> dict[str, str]:
        return os.environ | self.variables

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        process, start = self._started(), time.monotonic()
        while time.monotonic() - start < self.start_seconds:
            if (code := process.poll()) is not None:
                raise CheckFailed(f"the server {how_it_ended(code)}\n{self.tail()}")
            with contextlib.suppress(OSError), self.open("/health", timeout=2):
                self.seconds_to_ready = time.monotonic() - start
                return
            time.sleep(0.2)
        raise CheckFailed(f"the server did not answer in {self.start_seconds:.0f} s\n{self.tail()}")

    def open(self, path: str, body: bytes | None = None, timeout: float = 10) -> Any:
        """Send a request; a status of 400 and more is an HTTPError."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)
        # A proxy of the system's has no way to this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=timeout)

    def end(self, number: int) -> int:
        """Send a signal and return the exit code; CheckFailed when it does not end in time."""
        process = self._started()
        process.send_signal(number)
        try:
            return process.wait(timeout=self.stop_seconds)
        except subprocess.TimeoutExpired:
            name = signal.Signals(number).name
            raise CheckFailed(
                f"no end in {self.stop_seconds:.0f} s after {name}\n{self.tail()}"
            ) from None

    def stop(self) -> None:
        """Ask it to end, and end what is left of it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            with contextlib.suppress(CheckFailed):
                self.end(signal.SIGINT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_alive(self) -> bool:
        """Whether any of its processes is."""
        try:
            os.killpg(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def tail(self, num_lines: int = _TAIL_LINES) -> str:
        return last_lines(self.text(), num_lines)

    def _started(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "start it first"
        return self.process

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
