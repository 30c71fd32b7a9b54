# SPDX-License-Identifier: Apache-2.0
"""Runs groups of checks in processes of their own, and survives what these do."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from vllm_metal.selftest.checks import FAILED, Options, Result
from vllm_metal.selftest.groups import Group
from vllm_metal.selftest.processes import how_it_ended, last_lines

START_SECONDS = 300.0  # until a process has told its checks; imports take a minute when busy
MOST_CRASHES = 5  # of a group; what is left after that is not run
_TAIL_LINES = 12
_EXIT_SECONDS = 30.0
_TERM_SECONDS = 5.0

Event = dict[str, Any]
# The arguments of a child, given its request; tests put their own children here.
Command = Callable[[dict[str, Any]], list[str]]


def child_command(request: dict[str, Any]) -> list[str]:
    """Return the command that runs a group."""
    return [sys.executable, "-m", "vllm_metal.selftest.child", json.dumps(request)]


@dataclass
class GroupRun:
    """A group under way."""

    group: Group
    options: Options
    patterns: list[str]
    report: Callable[[Result], None]
    on_start: Callable[[str], None] = lambda _name: None
    command: Command = child_command
    start_seconds: float = START_SECONDS
    names: list[str] = field(default_factory=list)
    _done: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Run all checks; each gets exactly one result."""
        for _ in range(MOST_CRASHES):
            with Child(self) as child:
                if child.follow():
                    break
                self.fail(child.current or self.group.name, child.trouble)
            if child.current is None:  # it would come again
                break
        for name in self.names:
            if name not in self._done:
                self.fail(name, "not run: the process of its group failed too often")

    def list_names(self) -> list[str]:
        """Return the names of the checks without running them.

        RuntimeError when the process that should tell them does not.
        """
        with Child(self, list_only=True) as child:
            if not child.follow():
                raise RuntimeError(f"{self.group.name}: {child.trouble}")
        return self.names

    def request(self, list_only: bool) -> dict[str, Any]:
        """Return what a child is told."""
        return {
            "group": self.group.name,
            "options": asdict(self.options),
            "only": self.patterns,
            "skip": sorted(self._done),
            "list": list_only,
        }

    def finish(self, result: Result) -> None:
        """Take a result."""
        self._done.add(result.name)
        self.report(result)

    def fail(self, name: str, detail: str) -> None:
        """Have a check fail that has no result of its own."""
        self.finish(Result(name, FAILED, detail))


class Child:
    """The process of a group, and what it said."""

    def __init__(self, run: GroupRun, list_only: bool = False) -> None:
        self.current: str | None = None  # the check that is running
        self.trouble = ""
        self._run = run
        self._errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            run.command(run.request(list_only)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=os.environ | _VARIABLES,
            start_new_session=True,  # a group of its own, to end its children with it
        )
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def follow(self) -> bool:
        """Take events until the process says it ended; False when it did not, for `trouble`."""
        seconds = self._run.start_seconds
        while True:
            try:
                event = self._events.get(timeout=seconds)
            except queue.Empty:
                self.trouble = f"no end after {seconds:.0f} s, so it was ended{self._tail()}"
                return False
            if event is None:
                self.trouble = f"{self._how_it_ended()}{self._tail()}"
                return False
            if event.get("ended"):
                return True
            self._take(event)
            seconds = self._run.group.seconds_a_check

    def _take(self, event: Event) -> None:
        if "names" in event:
            self._run.names = event["names"]
        elif "started" in event:
            self.current = event["started"]
            self._run.on_start(event["started"])
        elif "result" in event:
            self.current = None
            self._run.finish(Result(**event["result"]))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            return "the process closed its output and went on"
        return f"the process {how_it_ended(code)}"

    def _tail(self) -> str:
        self._errors.seek(0)
        lines = last_lines(self._errors.read(), _TAIL_LINES)
        return f"\n{lines}" if lines else ""

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """End the process and whatever it started."""
        if error is None and not self.trouble:
            self._wait_for_exit()
        if self._process.poll() is None:  # a server that it started is in another group
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_TERM_SECONDS)
        # A Mac says PermissionError of a group that has ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def _wait_for_exit(self) -> None:
        """See that a process that ran all its checks ends as it should."""
        try:
            code = self._process.wait(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            trouble = f"the process did not end in {_EXIT_SECONDS:.0f} s"
        else:
            trouble = "" if code == 0 else self._how_it_ended()
        if trouble:
            self._run.fail(f"{self._run.group.name}/exit", f"{trouble}{self._tail()}")


_VARIABLES = {
    "PYTHONFAULTHANDLER": "1",  # says where a process crashed
    # GPUs may otherwise multiply float32 in 19 bits, and nothing could be compared.
    "MLX_ENABLE_TF32": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
