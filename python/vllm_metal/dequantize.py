# SPDX-License-Identifier: Apache-2.0
"""Write a copy of a quantised model directory with plain weights, for programs that read no other.

Every weight becomes the number that its bits stand for, rounded once to the data type asked for.
The copy is written as one file, so all of it must fit into memory.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vllm_metal.model_directory import (
    MANIFEST,
    SourceFile,
    check_free_disk,
    check_replaceable,
    filled_in_place,
    is_current,
    sha256_of,
    write_json,
    write_manifest,
)

if TYPE_CHECKING:
    import mlx.core as mx

DTYPES = ("bfloat16", "float16", "float32")
_QUANTIZATION = ("quantization", "quantization_config")
_NOT_COPIED = (MANIFEST, "config.json", "model.safetensors.index.json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `vllm-metal dequantize`."""
    parser.add_argument("source", metavar="DIR", type=Path, help="the model directory to copy")
    parser.add_argument("target", metavar="OUT", type=Path, help="the directory to write")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the copy's weights")
    parser.add_argument(
        "--force", action="store_true", help="replace a directory made from another model"
    )


def run(args: argparse.Namespace) -> int:
    """Copy; the directory is the last line printed."""
    print(dequantize(args.source, args.target, args.dtype, force=args.force))
    return 0


def dequantize(
    directory: Path, target: Path, dtype: str = DTYPES[0], *, force: bool = False
) -> Path:
    """Write the copy into `target` and return that, resolved.

    Does nothing when it is there, intact and made from the same files for the same dtype. Raises
    ValueError naming what is wrong with the model, ModelDirectoryError (a ValueError) when
    `target` may not be replaced, OSError when the disk refuses.
    """
    from vllm_metal import _core

    target = target.expanduser().resolve()
    config = _read_config(directory)
    source = _source_of(directory, dtype)
    if is_current(target, source):
        return target
    check_replaceable(target, source, force)
    weights = _plain_weights(directory, config, dtype)
    check_free_disk(target.parent, sum(weight.nbytes for weight in weights.values()))
    with filled_in_place(target) as partial:
        _save(partial / "model.safetensors", weights)
        kept = {key: value for key, value in config.items() if key not in _QUANTIZATION}
        write_json(partial / "config.json", kept | {"dtype": dtype, "torch_dtype": dtype})
        for file in directory.iterdir():
            if file.is_file() and file.name not in _NOT_COPIED and file.suffix != ".safetensors":
                shutil.copyfile(file, partial / file.name)
        write_manifest(partial, source, _core.__version__)
    return target


def _read_config(directory: Path) -> dict[str, Any]:
    config = json.loads((directory / "config.json").read_text("utf-8"))
    if not config.get("quantization"):
        raise ValueError(f"[dequantize] {directory}/config.json has no `quantization`.")
    mode = config["quantization"].get("mode", "affine")
    if mode != "affine":
        raise ValueError(f"[dequantize] {directory} has weights of mode {mode}, not affine.")
    return config


def _source_of(directory: Path, dtype: str) -> SourceFile:
    """Describe all that the copy depends on as if it were one file."""
    files = [*sorted(directory.glob("*.safetensors")), directory / "config.json"]
    sums = [f"{file.name} {sha256_of(file)}" for file in files]
    digest = hashlib.sha256("\n".join([*sums, dtype]).encode()).hexdigest()
    return SourceFile(directory.resolve().name, sum(file.stat().st_size for file in files), digest)


def _plain_weights(directory: Path, config: dict[str, Any], dtype: str) -> dict[str, "mx.array"]:
    """Return all tensors under their names; MLX computes them when they are saved."""
    import mlx.core as mx

    stored: dict[str, mx.array] = {}
    for file in sorted(directory.glob("*.safetensors")):
        stored |= cast("dict[str, mx.array]", mx.load(str(file)))
    settings = config["quantization"]
    weights = {}
    for name, tensor in stored.items():
        module, _, parameter = name.rpartition(".")
        quantised = f"{module}.scales" in stored
        if quantised and parameter in ("scales", "biases"):
            continue
        if quantised and parameter == "weight":
            layer = settings.get(module) or settings
            scales, biases = (
                stored[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")
            )
            tensor = mx.dequantize(  # noqa: PLW2901
                tensor, scales, biases, group_size=layer["group_size"], bits=layer["bits"]
            )
        weights[name] = tensor.astype(getattr(mx, dtype))
    return weights


def _save(path: Path, weights: dict[str, "mx.array"]) -> None:
    import mlx.core as mx

    # Readers that follow transformers look for the format they know.
    mx.save_safetensors(str(path), weights, metadata={"format": "pt"})
