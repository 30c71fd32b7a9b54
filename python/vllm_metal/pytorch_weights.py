# SPDX-License-Identifier: Apache-2.0
"""Reads `pytorch_model.bin`, the files of torch.save, for the core and for `vllm-metal convert`.

They are pickles, which could run code; torch's restricted unpickler builds tensors, nothing else.
"""

import pickle
import re
from pathlib import Path

import torch

from vllm_metal.tensor_bridge import from_torch

WEIGHTS = "pytorch_model.bin"

_ZIP = b"PK\x03\x04"


def read_pickle(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict by name.

    Their data is mapped, not read: pages come from disk when somebody copies them, and memory is
    short of nothing but those. Files of torch before 1.6 cannot be mapped and are read whole.
    Raises ValueError naming file and tensor for what the file holds, RuntimeError when it cannot be
    opened.
    """
    state = _load(path)
    if not isinstance(state, dict):
        raise ValueError(
            f"[weights] {path} must hold a dict of tensors by name but holds "
            f"{_article(type(state).__name__)}."
        )
    return {name: _checked(path, name, tensor) for name, tensor in state.items()}


def _load(path: str | Path) -> object:
    try:
        with Path(path).open("rb") as file:
            is_zip = file.read(len(_ZIP)) == _ZIP
    except OSError as error:
        raise RuntimeError(f"[weights] cannot open {path}: {error.strerror}.") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        # Not chained: torch's text recommends to run what is refused here.
        cause = error.__context__ or error
        if asked_for := re.search(r"GLOBAL (\w+(?:\.\w+)+)", str(cause)):
            raise ValueError(
                f"[weights] {path} is refused: it asks for {asked_for[1]}, and a model file's code "
                "is never run. If you trust its author, convert the model to safetensors with the "
                "program that made it (transformers' save_pretrained does)."
            ) from None
        raise _damaged(path, cause) from None
    except Exception as error:  # whatever torch's readers of zip and pickle raise
        raise _damaged(path, error) from error


def _checked(path: str | Path, name: object, tensor: object) -> torch.Tensor:
    if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
        raise ValueError(
            f"[weights] {path} must hold tensors by name but {name!r} is "
            f"{_article(type(tensor).__name__)}."
        )
    try:
        return from_torch(tensor)
    except ValueError as error:
        raise ValueError(f"[weights] tensor {name} in {path}: {error}") from None


def _damaged(path: str | Path, error: BaseException) -> ValueError:
    reason = next((line for line in map(str.strip, str(error).splitlines()) if line), "")
    reason = reason.split(". ")[0].removesuffix(".") or type(error).__name__
    return ValueError(f"[weights] {path} is damaged or not written by torch.save: {reason}.")


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
