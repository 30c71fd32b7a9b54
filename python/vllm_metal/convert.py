# SPDX-License-Identifier: Apache-2.0
"""Copy a model directory: quantised as MLX does it, dequantised, or with another data type.

Quantised copies are in the format of MLX's community, for vLLM Metal and mlx-lm; dequantised ones
in Hugging Face's, for programs that read no other: every weight becomes the number that its bits
stand for, rounded once. A plain copy has the metadata of the other format.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.affine_quantization import (
    Q_BITS,
    Q_GROUP_SIZES,
    dequantized,
    listed,
    quantized,
)
from vllm_metal.import_gguf import Progress, ProgressBar
from vllm_metal.model_directory import (
    SourceFile,
    check_free_disk,
    check_replaceable,
    filled_in_place,
    is_current,
    sha256_of,
    write_json,
    write_manifest,
)
from vllm_metal.safetensors_shards import write_weights
from vllm_metal.source_model import SourceModel

if TYPE_CHECKING:
    import mlx.core as mx

DTYPES = ("bfloat16", "float16", "float32")

_QUANTIZATION = ("quantization", "quantization_config")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Options:
    """What the weights of the copy are; by default what those of the source are."""

    q_bits: int | None = None
    q_group_size: int | None = None
    dequantize: bool = False
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.q_bits and self.dequantize:
            raise ValueError(
                f"[convert] --q-bits {self.q_bits} and --dequantize exclude each other."
            )
        if self.q_group_size and not self.q_bits:
            raise ValueError(
                f"[convert] --q-group-size {self.q_group_size} needs --q-bits, "
                f"one of {listed(Q_BITS)}."
            )

    @property
    def group_size(self) -> int:
        """Weights that share a scale, where the copy is quantised."""
        return self.q_group_size or 64

    @property
    def weights_dtype(self) -> str | None:
        """The data type of what is not quantised; None to keep it."""
        return self.dtype or (DTYPES[0] if self.dequantize else None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `vllm-metal convert`."""
    parser.add_argument("source", metavar="SRC", type=Path, help="the model directory to copy")
    parser.add_argument("target", metavar="DIR", type=Path, help="the directory to write")
    parser.add_argument(
        "--q-bits", type=int, choices=Q_BITS, help="quantise to this many bits a weight"
    )
    parser.add_argument(
        "--q-group-size",
        type=int,
        choices=Q_GROUP_SIZES,
        help="weights that share a scale (default: 64); layers whose rows do not divide into such "
        "groups stay as they are",
    )
    parser.add_argument("--dequantize", action="store_true", help="write plain weights")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"of the copy's weights and scales (default: as stored; {DTYPES[0]} with "
        "--dequantize)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a directory made from another model or with other options",
    )


def run(args: argparse.Namespace) -> int:
    """Copy, with a progress bar on a terminal; the directory is the last line printed."""
    options = Options(args.q_bits, args.q_group_size, args.dequantize, args.dtype)
    with ProgressBar(f"Converting {args.source.resolve().name}") as progress:
        directory = convert(args.source, args.target, options, force=args.force, progress=progress)
    print(directory)
    return 0


def convert(
    source: Path,
    target: Path,
    options: Options,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the copy of `source` into `target` and return that, resolved.

    Does nothing when it is there, intact and made from the same files with the same options.
    Raises ValueError naming what is wrong with the model or the options, ModelDirectoryError (a
    ValueError) when `target` may not be replaced, OSError when the disk refuses.
    """
    from vllm_metal import _core

    model = SourceModel.open(source)
    target = target.expanduser().resolve()
    if target in (model.directory, *model.directory.parents):
        raise ValueError(f"[convert] {target} must be another directory than {model.directory}.")
    if options.q_bits:
        model.check_plain()
    if options.dequantize:
        model.check_affine()
    made_from = _source_of(model, options)
    if is_current(target, made_from):
        return target
    check_replaceable(target, made_from, force)
    weights, config = _converted(model, options)
    needed = sum(weight.nbytes for weight in weights.values())
    needed += sum(file.stat().st_size for file in model.other_files)
    check_free_disk(target.parent, needed)
    with filled_in_place(target, made_from, force) as partial:
        write_weights(partial, weights, _format_of(model, options), progress)
        write_json(partial / "config.json", config)
        for file in model.other_files:
            shutil.copyfile(file, partial / file.name)
        write_manifest(partial, made_from, _core.__version__)
    return target


def _source_of(model: SourceModel, options: Options) -> SourceFile:
    """Describe all that the copy depends on as if it were one file."""
    sums = [f"{file.name} {sha256_of(file)}" for file in model.files]
    made = [options.q_bits, options.group_size, options.dequantize, options.weights_dtype]
    digest = hashlib.sha256("\n".join([*sums, json.dumps(made)]).encode()).hexdigest()
    size = sum(file.stat().st_size for file in model.files)
    return SourceFile(model.directory.name, size, digest)


def _format_of(model: SourceModel, options: Options) -> str:
    """Return the format that the copy's metadata tells."""
    if options.dequantize:
        return "pt"
    if options.q_bits or model.quantization:
        return "mlx"
    return "pt" if model.format == "mlx" else "mlx"


def _converted(
    model: SourceModel, options: Options
) -> tuple[dict[str, "mx.array"], dict[str, Any]]:
    """Return the copy's tensors, which MLX computes when they are written, and its config."""
    tensors = model.tensors()
    dtype = options.weights_dtype
    config = model.config | ({"dtype": dtype, "torch_dtype": dtype} if dtype else {})
    if options.dequantize:
        tensors = dequantized(tensors, model.quantization)
        config = {key: value for key, value in config.items() if key not in _QUANTIZATION}
    weights = {name: _cast(tensor, dtype) for name, tensor in tensors.items()}
    if options.q_bits:
        if _HEAD in weights and config.get("tie_word_embeddings"):
            # mlx-lm fails on a head in a tied model; transformers and vLLM take one that differs.
            if _head_repeats_embedding(model):
                del weights[_HEAD]
            else:
                config["tie_word_embeddings"] = False
        weights = quantized(weights, options.q_bits, options.group_size)
        settings = {"group_size": options.group_size, "bits": options.q_bits, "mode": "affine"}
        config |= dict.fromkeys(_QUANTIZATION, settings)
    if _format_of(model, options) == "mlx":
        config |= _older_rope_settings(config)
    return weights, config


def _older_rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what most models of mlx-lm read instead of `rope_parameters`, unless it is there."""
    settings = config.get("rope_parameters")
    if not isinstance(settings, dict) or "rope_theta" not in settings:
        return {}
    older = {"rope_theta": settings["rope_theta"]}
    if settings.get("rope_type", "default") != "default":
        older["rope_scaling"] = {
            key: value for key, value in settings.items() if key != "rope_theta"
        }
    return {key: value for key, value in older.items() if config.get(key) is None}


def _cast(tensor: "mx.array", dtype: str | None) -> "mx.array":
    import mlx.core as mx

    if dtype is None or not mx.issubdtype(tensor.dtype, mx.floating):
        return tensor
    return tensor.astype(getattr(mx, dtype))


def _head_repeats_embedding(model: SourceModel) -> bool:
    import mlx.core as mx

    tensors = model.tensors()  # not the copy's, which would keep the two in memory
    embedding = tensors.get("model.embed_tokens.weight")
    return embedding is not None and bool(mx.array_equal(tensors[_HEAD], embedding))
