# SPDX-License-Identifier: Apache-2.0
"""A short `vllm serve` in each mode of the KV cache: it starts, answers, streams and ends.

Both modes get the same questions, and must give the same answers.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_metal.selftest.checks import Check, CheckFailed, Finding, Options, Skip
from vllm_metal.selftest.default_model import served_model
from vllm_metal.selftest.processes import free_port, last_lines

_START_SECONDS = 900  # imports and Metal's compiler take minutes on a busy machine
_ANSWER_SECONDS = 300
_STOP_SECONDS = 60
_CHILDREN_SECONDS = 10  # that its processes may outlive it
_MODES = {"managed": "0", "paged": "1"}
_NAME = "selftest"
_QUESTION = "What is the capital of France? Answer in one sentence."


def checks(options: Options) -> list[Check]:
    """Return a check for each mode, and one that compares their answers."""
    answers: dict[str, str] = {}
    result = [
        Check(f"serve/{mode}", lambda mode=mode: _serve(options, mode, answers))  # type: ignore[misc]
        for mode in _MODES
    ]
    return [*result, Check("serve/same_answers", lambda: _same(answers))]


def _serve(options: Options, mode: str, answers: dict[str, str]) -> Finding:
    if not options.serve:
        raise Skip("--no-serve")
    model = served_model(options, fetch=True)
    with Server(model, Path(options.work) / f"serve-{mode}.log", mode) as server:
        start = server.wait_until_ready()
        whole, again = server.answer(), server.streamed_answer()
        if whole != again:
            raise CheckFailed(f"streamed: {again!r}, in one piece: {whole!r}")
        if not re.search(r"\w", whole):
            raise CheckFailed(f"the answer is {whole!r}")
        server.end()
    answers[mode] = whole
    figures = {"start_seconds": start, "answer": whole, "model": model.name}
    return Finding(detail=f"started in {start:.0f} s: {whole!r}", figures=figures)


def _same(answers: dict[str, str]) -> Finding:
    if len(answers) < len(_MODES):
        raise Skip("not all modes answered")
    if len(set(answers.values())) > 1:
        raise CheckFailed(f"the modes answer differently: {answers}")
    return Finding()


def program() -> list[str]:
    """Return the command `vllm` of this environment."""
    vllm = Path(sys.executable).with_name("vllm")
    return [str(vllm)] if vllm.exists() else [sys.executable, "-m", "vllm.entrypoints.cli.main"]


class Server:
    """A server process in a group of its own."""

    def __init__(self, model: Path, log: Path, mode: str) -> None:
        self._log = log
        self._port = free_port()
        options = ["--host", "127.0.0.1", "--port", str(self._port), "--max-model-len", "1024"]
        environment = os.environ | {"VLLM_METAL_USE_PAGED_ATTENTION": _MODES[mode]}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [*program(), "serve", str(model), "--served-model-name", _NAME, *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"HF_HUB_OFFLINE": "1"},
                start_new_session=True,
            )

    def wait_until_ready(self) -> float:
        """Return the seconds that it took; CheckFailed shows the log of a server that ended."""
        start = time.monotonic()
        while time.monotonic() - start < _START_SECONDS:
            if (code := self._process.poll()) is not None:
                raise CheckFailed(f"the server ended with exit code {code}\n{self._tail()}")
            with contextlib.suppress(OSError), self._open("/health", timeout=2):
                return time.monotonic() - start
            time.sleep(0.3)
        raise CheckFailed(f"the server did not answer in {_START_SECONDS} s\n{self._tail()}")

    def answer(self) -> str:
        """Return the greedy answer to the question."""
        with self._ask(stream=False) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    def streamed_answer(self) -> str:
        """Return it as it comes piece by piece."""
        with self._ask(stream=True) as response:
            return "".join(_pieces(response))

    def end(self) -> None:
        """Send SIGTERM; CheckFailed tells what did not end."""
        self._process.terminate()
        try:
            code = self._process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise CheckFailed(
                f"no end in {_STOP_SECONDS} s after SIGTERM\n{self._tail()}"
            ) from None
        if code != 0:
            raise CheckFailed(f"exit code {code} after SIGTERM\n{self._tail()}")
        deadline = time.monotonic() + _CHILDREN_SECONDS
        while self._group_lives():
            if time.monotonic() > deadline:
                raise CheckFailed(f"a process is left of the server\n{self._tail()}")
            time.sleep(0.1)

    def _ask(self, stream: bool) -> Any:
        body = {
            "model": _NAME,
            "messages": [{"role": "user", "content": _QUESTION}],
            "temperature": 0,
            "max_tokens": 24,
            "stream": stream,
        }
        try:
            return self._open("/v1/chat/completions", json.dumps(body).encode(), _ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            raise CheckFailed(f"status {error.code}: {error.read().decode()}") from error

    def _open(self, path: str, body: bytes | None = None, timeout: float = 10) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", body, {"Content-Type": "application/json"}
        )
        # A proxy of the system's has no way to this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(request, timeout=timeout)

    def _group_lives(self) -> bool:
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _tail(self, num_lines: int = 25) -> str:
        return last_lines(self._log.read_text(errors="replace"), num_lines)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _pieces(response: Any) -> Iterator[str]:
    """Yield the pieces of a stream of server-sent events; CheckFailed when it breaks off."""
    for line in response:
        data = line.decode().strip().removeprefix("data: ")
        if data == "[DONE]":
            return
        if data:
            for choice in json.loads(data)["choices"]:
                yield choice["delta"].get("content") or ""
    raise CheckFailed("the stream ended without [DONE]")
