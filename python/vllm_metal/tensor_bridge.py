# SPDX-License-Identifier: Apache-2.0
"""Tensors between the core, torch and numpy. Through DLPack, so that memory is shared.

The core's tensors cross as objects that speak DLPack, read-only; the arrays of MLX's own Python
package do not. What is shared, and who copies:

- core to torch, core to numpy: shared. The view keeps the memory alive, whoever goes first.
- torch or numpy to the core's functions: shared while the call reads it.
- torch or numpy to MLX (`_core.to_mlx`): one copy on the CPU and CUDA; on Metal none for contiguous
  tensors that begin and end with a page of memory, one otherwise.
- `mps`: one copy either way. torch tells nobody where such tensors lie.
"""

import importlib
from typing import Any

import numpy as np
import torch


def to_torch(tensor: Any, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return a tensor of the core as torch sees it: the same memory on the CPU.

    It must not be written: the core's arrays never change, and torch has no read-only tensors.
    """
    return _on_device(torch.from_dlpack(tensor), device)


def to_numpy(tensor: Any) -> np.ndarray:
    """Return a tensor of the core as numpy sees it: the same memory, read-only.

    numpy has no bfloat16. Where the package ml_dtypes can be imported, its bfloat16 stands in,
    else the bits come as uint16.
    """
    seen = torch.from_dlpack(tensor)
    if seen.dtype == torch.bfloat16:
        array = seen.view(torch.uint16).numpy().view(_numpy_bfloat16())
    else:
        array = seen.numpy()
    array.flags.writeable = False
    return array


def from_torch(tensor: torch.Tensor) -> torch.Tensor:
    """Return what the core takes for a tensor: the same memory on the CPU, whatever the strides.

    Raises ValueError for tensors that are more or less than strided numbers.
    """
    if tensor.is_quantized or tensor.layout != torch.strided:
        kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"[interop] a tensor must be a plain, strided one but is {kind}.")
    if tensor.is_meta:
        raise ValueError("[interop] a tensor must have values but its device is meta.")
    # DLPack has no words for gradients and for values yet to be conjugated or negated.
    return _on_device(tensor.detach().resolve_conj().resolve_neg(), "cpu")


def from_numpy(array: np.ndarray) -> np.ndarray | torch.Tensor:
    """Return what the core takes for an array: the same memory unless DLPack lacks words for it.

    It has none for the other byte order and for strides that are no whole elements: a copy. The
    bfloat16 of ml_dtypes goes as torch's.
    """
    if array.dtype.name == "bfloat16":
        bits = from_numpy(array.view(np.uint16))
        negative = any(stride < 0 for stride in array.strides)  # which torch does not have
        return torch.from_dlpack(bits.copy() if negative else bits).view(torch.bfloat16)
    if any(stride % array.itemsize for stride in array.strides) or not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="), order="C")
    return array


def _on_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return the tensor itself where it is there already, else a copy, after waiting for it.

    The only place that knows of `mps`: the CPU could read that memory, but torch gives no pointer
    to it that others can use.
    """
    return tensor.to(device)


def _numpy_bfloat16() -> np.dtype:
    try:
        return np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        return np.dtype(np.uint16)
