# SPDX-License-Identifier: Apache-2.0
"""Set up an environment beside .venv for what cannot live in it: `peer_env.py NAME…`.

  llama-cpp      llama.cpp through llama-cpp-python, compiled here for this machine's processor
  torch-backend  vLLM with its own CPU kernels on torch

Each lies in .cache/envs/NAME, is made from requirements/NAME.txt, and remembers what it was made
from, so a second call does nothing. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import environments
import preflight
import uv_tool
from checkout import CACHE, REQUIREMENTS, VENV_PYTHON, SetupError, exit_code, say
from setup_env import digest, setup_lock


@dataclass(frozen=True)
class Peer:
    """An environment: what to say of its installation, and more arguments of `uv pip sync`."""

    announcement: str
    arguments: tuple[str, ...] = ()


PEERS = {
    "llama-cpp": Peer(
        "Compiling llama.cpp for this processor (about 10 minutes on two cores)",
        ("--no-binary", "llama-cpp-python", "-C", "cmake.args=-DGGML_NATIVE=ON"),
    ),
    "torch-backend": Peer("Installing vLLM's CPU back end (2.5 GB to download on Linux at most)"),
}


def folder_of(name: str) -> Path:
    return CACHE / "envs" / name


def key_of(name: str) -> str:
    return digest([REQUIREMENTS / f"{name}.txt"], repr(PEERS[name]))


def interpreter_of(name: str) -> Path | None:
    """Return the Python of an environment that is there and up to date."""
    folder = folder_of(name)
    python = environments.python_of(folder)
    return python if python.exists() and environments.up_to_date(folder, key_of(name)) else None


def choose_python(uv: str) -> str:
    """The interpreter of .venv, or the one that .venv would get."""
    if preflight.inspect_interpreter(str(VENV_PYTHON)):
        return str(VENV_PYTHON)
    interpreter, problems = preflight.choose_interpreter(None)
    if problems:
        raise SetupError(preflight.report(problems))
    return interpreter.path if interpreter else uv_tool.managed_python(uv)


def check(name: str) -> None:
    """Refuse what no package has for this system, before minutes are spent on others."""
    if name == "torch-backend" and preflight.is_mac():
        raise SetupError(
            "torch-backend: no package has vLLM's CPU kernels for macOS. On a Mac compare with "
            "llama.cpp alone: scripts/peer_env.py llama-cpp"
        )


def install(name: str) -> None:
    peer, lock = PEERS[name], REQUIREMENTS / f"{name}.txt"
    say(peer.announcement)
    uv = uv_tool.ensure_uv()
    python, key = choose_python(uv), key_of(name)
    environments.make(uv, python, folder_of(name), key, lock, *peer.arguments)


def ensure(name: str) -> Path:
    """Return the Python of an environment, made or brought up to date if need be."""
    with setup_lock():
        if interpreter_of(name) is None:
            install(name)
    return environments.python_of(folder_of(name))


def main() -> int:
    names = sys.argv[1:]
    if not names or set(names) - set(PEERS):
        print(f"usage: {sys.argv[0]} {'|'.join(PEERS)}…", file=sys.stderr)
        return 2

    def ensure_all() -> None:
        for name in names:
            check(name)
        for name in names:
            print(ensure(name))

    return exit_code(ensure_all)


if __name__ == "__main__":
    sys.exit(main())
