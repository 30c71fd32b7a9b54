# SPDX-License-Identifier: Apache-2.0
"""Engines to compare with, and what they need that `make setup` does not install."""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
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


def versions(*names: str) -> dict[str, str]:
    return {name: version(name) for name in names}


def locked_version(environment: str, package: str) -> str:
    lock = (ROOT / "requirements" / f"{environment}.txt").read_text()
    return re.search(rf"^{package}==(\S+)", lock, re.MULTILINE)[1]


def default_model() -> tuple[Path, Path, Path]:
    """Return the 4-bit model directory, its bfloat16 copy, and the GGUF file of the former."""
    from vllm_metal.convert import Options, convert
    from vllm_metal.default_model import ensure_default_gguf, ensure_default_model

    model = Path(ensure_default_model())
    target = model.with_name(f"{model.name}-bfloat16")
    copy = convert(model, target, Options(dequantize=True, dtype="bfloat16"), force=True)
    return model, copy, ensure_default_gguf()


def memory_reads() -> Engine:
    return Engine("memory reads", "memory_reads.py", {})


def torch(model: Path, dtype: str) -> Engine:
    return Engine(f"torch {dtype}", "torch_runner.py", {"model": str(model), "dtype": dtype})


def ours(model: Path, name: str = "ours", dtype: str | None = None) -> Engine:
    """Our core; with activations of the model's dtype unless told otherwise."""
    settings = {"model": str(model), "context": CONTEXT, "dtype": dtype}
    return Engine(name, "core_runner.py", settings)


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
