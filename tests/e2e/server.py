# SPDX-License-Identifier: Apache-2.0
"""Starts `vllm serve` as users do, and stops it."""

from pathlib import Path
from typing import Any

from vllm_metal.selftest.server_process import ServerProcess, vllm_program

VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # The tests of the plugin turn it off in their own process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    # By default the server closes a connection that is idle for 5 s. A client that sends a request
    # at this moment gets no answer.
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "600",
}


class Server(ServerProcess):
    def __init__(
        self,
        model: Path | str,
        log: Path,
        *arguments: str,
        name: str = "model",
        variables: dict[str, str] | None = None,
    ) -> None:
        super().__init__(log, variables=VARIABLES | (variables or {}))
        self.name = name
        self.command = [*vllm_program(), "serve", str(model), *self.address(name), *arguments]

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300)

    def wait_for_exit(self, seconds: float = ServerProcess.start_seconds) -> int:
        """Return the exit code of a server that is expected to end by itself."""
        return self.process.wait(timeout=seconds)

    def engine(self) -> Any:
        """Return the engine's process, as psutil has it."""
        import psutil

        children = psutil.Process(self.pid).children(recursive=True)
        (engine,) = [child for child in children if "EngineCore" in child.name()]
        return engine

    def refusal(self) -> str:
        """Start a server that is expected to refuse to; returns what it said."""
        self.start()
        try:
            assert self.wait_for_exit() != 0
        finally:
            self.stop()
        return self.text()

    def send_signal(self, number: int, seconds: float) -> tuple[int, list[str]]:
        """Send a signal; returns the exit code and what is left of the children.

        subprocess.TimeoutExpired when the server does not end in time.
        """
        import psutil

        children = psutil.Process(self.pid).children(recursive=True)
        assert children, "the engine runs in a process of its own"
        self.process.send_signal(number)
        code = self.process.wait(timeout=seconds)
        _, alive = psutil.wait_procs(children, timeout=20)
        return code, [str(child) for child in alive]
