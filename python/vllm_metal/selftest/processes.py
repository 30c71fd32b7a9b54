# SPDX-License-Identifier: Apache-2.0
"""Parts of checks that run in a process of their own."""

import json
import os
import signal
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
        tail = "\n".join(result.stderr.splitlines()[-_TAIL_LINES:])
        raise CheckFailed(f"{name}: the process {how_it_ended(result.returncode)}\n{tail}")
    return result.stdout


def how_it_ended(return_code: int) -> str:
    """Say it, given what subprocess says."""
    if return_code >= 0:
        return f"ended with exit code {return_code}"
    return f"was ended by {signal.Signals(-return_code).name}"
