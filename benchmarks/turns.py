# SPDX-License-Identifier: Apache-2.0
"""Engines in processes of their own that take turns, so that what slows the machine slows all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENGINES = Path(__file__).resolve().parent / "engines"
SECONDS_BETWEEN = 0.05  # threads of who just ran stop waiting for work

Answer = dict[str, Any]


@dataclass
class Engine:
    """A script of engines/ and what it is started with."""

    name: str
    script: str
    settings: dict[str, Any]
    python: Path = field(default_factory=lambda: Path(sys.executable))


class Child:
    """A running engine."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.name = engine.name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        settings = engine.settings | {"threads": threads}
        count = str(threads)
        environment = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [engine.python, ENGINES / engine.script, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
        )
        try:
            self.versions: dict[str, str] = self._answer()
        except BaseException:
            self.close()
            raise

    def run(self, **request: Any) -> Answer:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        time.sleep(SECONDS_BETWEEN)
        return answer

    def _answer(self) -> Answer:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self._log.seek(0)
            tail = "\n".join(self._log.read().splitlines()[-20:])
            raise RuntimeError(f"{self.name} ended with code {self.process.returncode}:\n{tail}")
        return json.loads(line)

    def close(self) -> None:
        """End the process: its input ends."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


@contextlib.contextmanager
def started(engines: list[Engine], threads: int) -> Iterator[dict[str, Child]]:
    """Start engines one after the other; end them all when the block ends."""
    with contextlib.ExitStack() as stack:
        children = {}
        for engine in engines:
            children[engine.name] = stack.enter_context(contextlib.closing(Child(engine, threads)))
        yield children


def take_turns(
    children: dict[str, Child], runs: dict[str, int], requests: dict[str, dict[str, Any]]
) -> dict[str, list[Answer]]:
    """Answers to each child's request, `runs` of it, after one that is not counted."""
    answers: dict[str, list[Answer]] = {name: [] for name in requests}
    for turn in range(max(runs.values()) + 1):
        for name, request in requests.items():
            if turn <= runs[name]:
                answer = children[name].run(**request)
                if turn > 0:
                    answers[name].append(answer)
    return answers
