# SPDX-License-Identifier: Apache-2.0
"""Starts `vllm serve` as users do, and stops it."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from vllm_metal.selftest.processes import free_port

START_SECONDS = 400  # imports alone take a minute on a busy machine
STOP_SECONDS = 60


class Server:
    """A server process; `with` starts it, waits until it answers, and stops it."""

    def __init__(
        self,
        model: Path | str,
        log: Path,
        *arguments: str,
        name: str = "model",
        variables: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self._variables = variables or {}
        self.port = free_port()
        self.log = log
        self._command = [
            str(Path(sys.executable).with_name("vllm")),
            *("serve", str(model), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--served-model-name", name, *arguments),
        ]
        self._process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def start(self) -> None:
        environment = (
            os.environ
            | {
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "DO_NOT_TRACK": "1",
                # The tests of the plugin turn it off in their own process.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            }
            | self._variables
        )
        with self.log.open("a") as log:  # of all starts
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a group of its own, to stop its children with it
            )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"The server ended while starting:\n{self.tail()}")
            if self._answers():
                return
            time.sleep(0.5)
        raise AssertionError(f"The server did not start in {START_SECONDS} s:\n{self.tail()}")

    def wait_for_exit(self, seconds: float = START_SECONDS) -> int:
        """Return the exit code of a server that is expected to end by itself."""
        return self._process.wait(timeout=seconds)

    def engine(self) -> Any:
        """Return the engine's process, as psutil has it."""
        import psutil

        children = psutil.Process(self._process.pid).children(recursive=True)
        (engine,) = [child for child in children if "EngineCore" in child.name()]
        return engine

    def refusal(self) -> str:
        """Start a server that is expected to refuse to; returns what it said."""
        self.start()
        try:
            assert self.wait_for_exit() != 0
        finally:
            self.stop()
        return self.log.read_text(errors="replace")

    def send_signal(self, number: int, seconds: float) -> tuple[int, list[str]]:
        """Send a signal; returns the exit code and what is left of the children.

        subprocess.TimeoutExpired when the server does not end in time.
        """
        import psutil

        children = psutil.Process(self._process.pid).children(recursive=True)
        assert children, "the engine runs in a process of its own"
        self._process.send_signal(number)
        code = self._process.wait(timeout=seconds)
        _, alive = psutil.wait_procs(children, timeout=5)
        return code, [str(child) for child in alive]

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def tail(self, num_lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> "Server":
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
