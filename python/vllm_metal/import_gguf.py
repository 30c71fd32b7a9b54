# SPDX-License-Identifier: Apache-2.0
"""Write a model directory in MLX's community format from a GGUF file, without any rounding.

The weights are repacked by the core: Q4_0, Q4_1 and Q8_0 blocks become MLX's affine groups of
32, other tensors stay as they are. An import that fails or is interrupted leaves nothing.
"""

import argparse
import errno
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.model_directory import (
    SourceFile,
    cache_directory,
    check_free_disk,
    check_replaceable,
    filled_in_place,
    is_current,
    is_file_name,
    write_json,
    write_manifest,
)

if TYPE_CHECKING:
    from vllm_metal._core import GgufImport
    from vllm_metal.gguf_tokenizer import GgufTokenizer

Progress = Callable[[int, int], None]
"""Called with the bytes of the GGUF file that are done and their total."""

_WEIGHTS = "model.safetensors"
_TOKENIZER_BYTES = 64 << 20  # more than its files ever take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `vllm-metal import-gguf`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the GGUF file")
    parser.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        nargs="?",
        help="the model directory to write (default: one named like FILE in the cache folder, "
        f"{cache_directory() / 'models'})",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace a directory that was imported from another file",
    )


def run(args: argparse.Namespace) -> int:
    """Import, with a progress bar on a terminal; the directory is the last line printed."""
    with ProgressBar(f"Importing {args.file.name}") as progress:
        directory = import_gguf(args.file, args.directory, force=args.force, progress=progress)
    print(directory)
    return 0


class ProgressBar:
    """Draws progress on standard error, when that is a terminal."""

    def __init__(self, title: str) -> None:
        from tqdm import tqdm

        # `disable=None` is tqdm's way to say: only on a terminal.
        self._bar = tqdm(
            desc=title, unit="B", unit_scale=True, disable=None, leave=False, file=sys.stderr
        )

    def __enter__(self) -> Progress:
        return self._update

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def _update(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def import_gguf(
    file: Path,
    directory: Path | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the model in `file` into `directory` and return that, resolved.

    Does nothing when the directory is intact and was made from the same file. Raises ValueError
    naming what in the file is wrong or not supported, ModelDirectoryError (a ValueError) when
    the directory may not be replaced, OSError or RuntimeError when the disk refuses.
    """
    from vllm_metal import _core

    file = file.expanduser()
    if file.exists() and not file.is_file():  # a pipe would block
        raise ValueError(f"[import-gguf] {file} is not a file.")
    if directory is None:
        name = file.name.removesuffix(".gguf")
        if not is_file_name(name):
            raise ValueError(f"[import-gguf] {file} names no model; name a directory to write.")
        directory = cache_directory() / "models" / name
    target = directory.expanduser().resolve()
    _core.GgufImport(file)  # before all of a file is read that claims a hundred gigabytes
    source = SourceFile.of(file)
    if is_current(target, source):
        return target
    check_replaceable(target, source, force)
    gguf, tokenizer = _read(file)
    check_free_disk(target.parent, gguf.output_bytes + _TOKENIZER_BYTES)
    try:
        with filled_in_place(target, source, force) as partial:
            gguf.write(partial / _WEIGHTS, progress)
            _write_small_files(partial, gguf, tokenizer)
            write_manifest(partial, source, _core.__version__)
    except OSError as error:
        # Another import of the same file may have been faster.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and is_current(target, source):
            return target
        raise
    return target


def _read(file: Path) -> tuple["GgufImport", "GgufTokenizer"]:
    """Check everything but the tensors' data."""
    from vllm_metal import _core
    from vllm_metal.gguf_tokenizer import read_tokenizer

    gguf = _core.GgufImport(file)
    return gguf, read_tokenizer(gguf.metadata, gguf.model["vocab_size"])


def _write_small_files(directory: Path, gguf: "GgufImport", tokenizer: "GgufTokenizer") -> None:
    write_json(directory / "config.json", config_of(gguf, tokenizer))
    write_json(directory / "generation_config.json", _special_token_ids(tokenizer))
    tokenizer.save(directory, gguf.model["max_position_embeddings"])


def config_of(gguf: "GgufImport", tokenizer: "GgufTokenizer") -> dict[str, Any]:
    """Return config.json: Hugging Face's keys, with quantisation as MLX's community writes it."""
    model = {
        name: _shortest(value) if isinstance(value, float) else value
        for name, value in gguf.model.items()
    }
    names = set(gguf.output_names)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **model,
        "hidden_act": "silu",
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in names,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in names,
        # Where both layouts of the rope settings stand, every reader finds the one it knows.
        "rope_parameters": {"rope_theta": model["rope_theta"], "rope_type": "default"},
        "tie_word_embeddings": "lm_head.weight" not in names,
        **_special_token_ids(tokenizer),
        "dtype": "float16",
        "torch_dtype": "float16",
    }
    quantization = quantization_of(gguf.linear_bits)
    if quantization:
        config |= {"quantization": quantization, "quantization_config": quantization}
    return config


def quantization_of(linear_bits: dict[str, int]) -> dict[str, Any] | None:
    """Return MLX's settings: those of most layers, and one entry for each layer that differs.

    None when no layer is quantised.
    """
    from vllm_metal import _core

    counts = Counter(bits for bits in linear_bits.values() if bits)
    if not counts:
        return None
    group_size = _core.GGML_GROUP_SIZE
    usual = counts.most_common(1)[0][0]
    settings: dict[str, Any] = {"group_size": group_size, "bits": usual, "mode": "affine"}
    for module, bits in linear_bits.items():
        if bits != usual:
            settings[module] = {"group_size": group_size, "bits": bits} if bits else False
    return settings


def _special_token_ids(tokenizer: "GgufTokenizer") -> dict[str, Any]:
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.end_token_ids,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {key: value for key, value in ids.items() if value is not None}


def _shortest(value: float) -> float:
    """Return the shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
