# SPDX-License-Identifier: Apache-2.0
"""A short `vllm serve` in each mode of the KV cache: it starts, answers, streams and ends.

Both modes get the same questions, and must give the same answers.
"""

import json
import re
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_metal.selftest.checks import Check, CheckFailed, Finding, Options, Skip
from vllm_metal.selftest.default_model import served_model
from vllm_metal.selftest.server_process import ServerProcess, vllm_program

_ANSWER_SECONDS = 300
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
        whole, again = server.answer(), server.streamed_answer()
        if whole != again:
            raise CheckFailed(f"streamed: {again!r}, in one piece: {whole!r}")
        if not re.search(r"\w", whole):
            raise CheckFailed(f"the answer is {whole!r}")
        server.end_well()
    answers[mode] = whole
    start = server.seconds_to_ready
    figures = {"start_seconds": start, "answer": whole, "model": model.name}
    return Finding(detail=f"started in {start:.0f} s: {whole!r}", figures=figures)


def _same(answers: dict[str, str]) -> Finding:
    if len(answers) < len(_MODES):
        raise Skip("not all modes answered")
    if len(set(answers.values())) > 1:
        raise CheckFailed(f"the modes answer differently: {answers}")
    return Finding()


class Server(ServerProcess):
    """A server of the model in one of the modes."""

    start_seconds = 900.0  # imports and Metal's compiler take minutes on a busy machine

    def __init__(self, model: Path, log: Path, mode: str) -> None:
        variables = {"VLLM_METAL_USE_PAGED_ATTENTION": _MODES[mode], "HF_HUB_OFFLINE": "1"}
        super().__init__(log, variables=variables)
        options = [*self.address(_NAME), "--max-model-len", "1024"]
        self.command = [*vllm_program(), "serve", str(model), *options]

    def answer(self) -> str:
        """Return the greedy answer to the question."""
        with self._ask(stream=False) as response:
            return json.load(response)["choices"][0]["message"]["content"]

    def streamed_answer(self) -> str:
        """Return it as it comes piece by piece."""
        with self._ask(stream=True) as response:
            return "".join(_pieces(response))

    def end_well(self) -> None:
        """Send SIGTERM; CheckFailed tells what did not end."""
        if (code := self.end(signal.SIGTERM)) != 0:
            raise CheckFailed(f"exit code {code} after SIGTERM\n{self.tail()}")
        deadline = time.monotonic() + _CHILDREN_SECONDS
        while self.is_alive():
            if time.monotonic() > deadline:
                raise CheckFailed(f"a process is left of the server\n{self.tail()}")
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
            return self.open("/v1/chat/completions", json.dumps(body).encode(), _ANSWER_SECONDS)
        except urllib.error.HTTPError as error:
            raise CheckFailed(f"status {error.code}: {error.read().decode()}") from error


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
