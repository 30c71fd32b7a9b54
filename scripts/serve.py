# SPDX-License-Identifier: Apache-2.0
"""`make serve`: set up, then become vLLM's OpenAI server on this machine.

Reads MODEL (a model directory, a .gguf file or a Hugging Face name; default: the small model
that comes with the set-up), PORT (default 8000) and ARGS (more arguments of `vllm serve`).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import preflight
import setup_env
from checkout import VENV, VENV_PYTHON, SetupError, exit_code, say

DEFAULT_NAME = "SmolLM2-135M-Instruct"


def read_port() -> int:
    text = os.environ.get("PORT") or "8000"
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise SetupError(f"PORT={text} is not a port number (1 to 65535).")
    return int(text)


def last_line_of(command: list[str], what: str) -> str:
    """Run one of our commands, its progress visible, and return the last line it prints."""
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        raise SetupError(f"{what} failed (exit code {result.returncode}).")
    return lines[-1]


def find_model(requested: str) -> tuple[str, str, bool]:
    """What vLLM is given as model, the name it serves it under, and whether it is local."""
    if not requested:
        command = [str(VENV_PYTHON), "-m", "vllm_metal.default_model"]
        return last_line_of(command, "Fetching the default model"), DEFAULT_NAME, True
    path = Path(requested).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SetupError(f"MODEL={requested} does not exist.")
        command = [str(VENV / "bin" / "vllm-metal"), "import-gguf", str(path.resolve())]
        return last_line_of(command, f"Importing {path.name}"), path.stem, True
    if path.is_dir():
        return str(path.resolve()), path.resolve().name, True
    if path.is_absolute() or requested.startswith((".", "~")):
        raise SetupError(f"MODEL={requested} does not exist.")
    return requested, requested, False


def server_environment(local: bool) -> dict[str, str]:
    environment = dict(os.environ)
    # Set while building vLLM on a Mac by many; at run time it switches platform plugins off.
    environment.pop("VLLM_TARGET_DEVICE", None)
    environment |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if local:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def announce(name: str, port: int) -> None:
    say(f"Serving {name} on http://127.0.0.1:{port}/v1 (Ctrl-C stops it)")
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    print(
        'When it says "Application startup complete", try from another terminal:\n\n'
        f"  curl http://127.0.0.1:{port}/v1/chat/completions"
        f" -H 'Content-Type: application/json' -d '{body}'\n",
        file=sys.stderr,
        flush=True,
    )


def serve() -> None:
    port = read_port()
    arguments = shlex.split(os.environ.get("ARGS") or "")
    setup_env.ensure("serve", preflight.check_port(port))
    model, name, local = find_model(os.environ.get("MODEL") or "")
    announce(name, port)
    command = [str(VENV / "bin" / "vllm"), "serve", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", name, *arguments]
    os.execve(command[0], command, server_environment(local))


def main() -> int:
    return exit_code(serve)


if __name__ == "__main__":
    sys.exit(main())
