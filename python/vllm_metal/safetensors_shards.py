# SPDX-License-Identifier: Apache-2.0
"""Writes safetensors files of bounded size, with one tensor at a time in memory.

MLX's own writer has all tensors of a file computed before it writes the first.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vllm_metal.model_directory import write_json

if TYPE_CHECKING:
    import mlx.core as mx

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What the hub and mlx-lm cut models into; tests lower it.
SHARD_BYTES = 5 * 10**9
_ALIGNMENT = 8
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
}


def write_weights(
    directory: Path,
    tensors: dict[str, "mx.array"],
    layout: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write one file, or shards and their index where it would exceed SHARD_BYTES.

    Empties `tensors`: each is computed when its turn comes and freed when it is written. `layout`
    is the format that readers look for, "pt" or "mlx". `progress` is called with the bytes done
    and their total.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    done = 0
    shards = _shards(tensors)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else WEIGHTS
        files |= dict.fromkeys(names, name)
        for nbytes in _write_file(directory / name, tensors, names, layout):
            done += nbytes
            if progress:
                progress(done, total)
    if len(shards) > 1:
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": files})


def _shards(tensors: dict[str, "mx.array"]) -> list[list[str]]:
    """Deal the sorted names out; a tensor larger than a shard gets one of its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors):
        if shards[-1] and size + tensors[name].nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensors[name].nbytes
    return shards


def _write_file(
    path: Path, tensors: dict[str, "mx.array"], names: list[str], layout: str
) -> Iterator[int]:
    """Write one file; yields the bytes of each tensor after it is written."""
    import mlx.core as mx

    names = sorted(names, key=lambda name: _place(name, tensors[name]))
    header = _header(names, tensors, layout)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            tensor = tensors.pop(name)
            file.write(memoryview(cast("Any", tensor.reshape(-1).view(mx.uint8))))
            yield tensor.nbytes


def _place(name: str, tensor: "mx.array") -> tuple[bool, int, str]:
    """Order by name, but odd sizes last and the wider first, so that all tensors are aligned."""
    odd = tensor.nbytes % _ALIGNMENT != 0
    return odd, -tensor.itemsize if odd else 0, name


def _header(names: list[str], tensors: dict[str, "mx.array"], layout: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": layout}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        entries[name] = {
            "dtype": _DTYPES[str(tensor.dtype).removeprefix("mlx.core.")],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    header = json.dumps(entries).encode()
    return header + b" " * (-len(header) % _ALIGNMENT)
