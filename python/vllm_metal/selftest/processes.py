# SPDX-License-Identifier: Apache-2.0
"""Parts of checks that run in a process of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from vllm_metal.selftest.checks import CheckFailed

_TAIL_LINES = 8


def output_of(
    module: str, request: dict[str, Any], seconds: float, variables: dict[str, str] | None = None
) -> str:
    """Run a module with a request as JSON; return its output. CheckFailed tells how it failed."""
    name = module.rpartition(".")[2]
    try:
        result = subprocess.run(
            [sys.executable, "-m", module, json.dumps(request)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            env=os.environ | (variables or {}),
        )
    except subprocess.TimeoutExpired as late:
        raise CheckFailed(f"{name}: no end after {seconds:.0f} s") from late
    if result.returncode != 0:
        tail = last_lines(result.stderr, _TAIL_LINES)
        raise CheckFailed(f"{name}: the process {how_it_ended(result.returncode)}\n{tail}")
    return result.stdout


def how_it_ended(return_code: int) -> str:
    """Say it, given what subprocess says."""
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    return f"was ended by {signal.Signals(-return_code).name}"


def last_lines(text: str, count: int) -> str:
    """Return the end of what a process said."""
    return "\n".join(text.splitlines()[-count:])


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
