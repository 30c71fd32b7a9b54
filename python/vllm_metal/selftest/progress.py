# SPDX-License-Identifier: Apache-2.0
"""What is said while checks run: a line that changes on a terminal, else a line a check."""

from typing import TextIO

from vllm_metal.selftest.checks import FAILED, Result
from vllm_metal.selftest.groups import Group
from vllm_metal.selftest.report import number, without_user

_CLEAR = "\r\x1b[2K"


class Progress:
    """Writes to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()

    def group(self, group: Group) -> None:
        """Say that a group begins."""
        self._line(f"== {group.name}: {group.help}")

    def started(self, name: str) -> None:
        """Say what is running."""
        if self._terminal:
            self._write(f"{_CLEAR}   {name} …")

    def finished(self, result: Result) -> None:
        """Say how a check ended; on a terminal what passed makes room for the next."""
        if self._terminal and result.status != FAILED:
            return
        error = "" if result.worst_error is None else f" error {number(result.worst_error)}"
        detail = without_user(result.detail.splitlines()[0]) if result.detail else ""
        self._line(f"   {result.status:<7} {result.name} {result.seconds:.2f} s{error} {detail}")

    def end(self) -> None:
        """Say that all ran."""
        self._line("")

    def _line(self, text: str) -> None:
        self._write(f"{_CLEAR if self._terminal else ''}{text.rstrip()}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
