# SPDX-License-Identifier: Apache-2.0
"""Engines to compare with, and what they need that `make setup` does not install."""

from __future__ import annotations

import sys
from pathlib import Path

from measure import ROOT
from turns import Engine

sys.path.insert(0, str(ROOT / "scripts"))
import peer_env

CONTEXT = 1024


def missing(name: str) -> str:
    """Return a line that says how to install an environment that is not there, or nothing."""
    if peer_env.interpreter_of(name):
        return ""
    return f"{name} is missing and left out; install it: make bench-peers"


def ours(model: Path, name: str = "ours") -> Engine:
    return Engine(name, "core_runner.py", {"model": str(model), "context": CONTEXT})


def mlx_lm(model: Path) -> Engine:
    return Engine("mlx-lm", "mlx_lm_runner.py", {"model": str(model)})


def llama_cpp(gguf: Path) -> list[Engine]:
    """Both of its ways to compute attention: which is faster depends on machine and length."""
    python = peer_env.interpreter_of("llama-cpp")
    if python is None:
        return []
    return [
        Engine(
            name,
            "llama_runner.py",
            {"gguf": str(gguf), "context": CONTEXT, "flash_attention": flash},
            python,
        )
        for name, flash in (("llama.cpp", False), ("llama.cpp flash", True))
    ]
