# SPDX-License-Identifier: Apache-2.0
"""A model directory on its way into another: its files, its config, its tensors.

Nothing in it is executed, and no file is read that is not in it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vllm_metal.affine_quantization import listed
from vllm_metal.json_file import read_json
from vllm_metal.model_directory import MANIFEST
from vllm_metal.safetensors_shards import WEIGHTS

if TYPE_CHECKING:
    import mlx.core as mx

_CONFIG = "config.json"
_PICKLE = ".bin"
# Weights of other formats, which would be the model once more.
_NOT_COPIED = (".safetensors", ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth")


@dataclass(frozen=True)
class SourceModel:
    """A model directory whose headers and config were checked."""

    directory: Path
    weight_files: list[Path]
    other_files: list[Path]  # without config.json
    config: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "SourceModel":
        """Check the directory at `path`; ValueError names what is wrong."""
        directory = path.expanduser().resolve()
        if not directory.is_dir():
            raise ValueError(
                f"[convert] {path} is not a directory. A model of the Hugging Face hub has to be "
                f"downloaded first: hf download {path} --local-dir DIRECTORY."
            )
        _check_links(directory)
        return cls(
            directory,
            _weight_files(directory),
            _other_files(directory),
            _read_config(directory / _CONFIG),
        )

    @property
    def files(self) -> list[Path]:
        """All files that a copy depends on."""
        return [*self.weight_files, self.directory / _CONFIG, *self.other_files]

    @property
    def quantization(self) -> dict[str, Any]:
        """How the weights are quantised; empty when they are not."""
        return _quantization_of(self.config)

    @property
    def format(self) -> str | None:
        """The format that the weights' metadata tells, "pt" or "mlx"."""
        import mlx.core as mx

        if self.weight_files[0].suffix == _PICKLE:
            return "pt"
        _, metadata = cast(
            "tuple[Any, Any]", mx.load(str(self.weight_files[0]), return_metadata=True)
        )
        return metadata.get("format")

    def tensors(self) -> dict[str, "mx.array"]:
        """Return all tensors by name; each is read when something is computed with it.

        Those of pytorch_model.bin are read now: MLX reads no such files by itself.
        """
        import mlx.core as mx

        tensors: dict[str, mx.array] = {}
        for file in self.weight_files:
            if file.suffix == _PICKLE:
                tensors |= _read_pickle(file)
                continue
            try:
                tensors |= cast("dict[str, mx.array]", mx.load(str(file)))
            except RuntimeError as error:  # a data type that MLX lacks
                raise ValueError(f"[convert] {file} cannot be read: {error}.") from error
        return tensors

    def check_plain(self) -> None:
        """Raise ValueError unless the model can be quantised."""
        from vllm_metal import _core

        if self.quantization:
            raise ValueError(
                f"[convert] {self.directory} is quantised already; "
                "convert it with --dequantize first."
            )
        # Weights of others may have a linear layer's name and shape and be something else.
        names, allowed = self.config.get("architectures"), _core.supported_architectures()
        if not isinstance(names, list) or not any(name in names for name in allowed):
            raise ValueError(
                f"[convert] `architectures` in {self.directory}/config.json must name one of "
                f"{listed(allowed)} for --q-bits but is {names}."
            )

    def check_affine(self) -> None:
        """Raise ValueError unless the model can be dequantised."""
        settings = self.quantization
        if not settings:
            raise ValueError(f"[convert] {self.directory}/{_CONFIG} has no `quantization`.")
        if method := settings.get("quant_method"):
            raise ValueError(
                f"[convert] {self.directory} has weights of {method}, not MLX's affine."
            )
        for layer in (settings, *settings.values()):
            mode = layer.get("mode") if isinstance(layer, dict) else None
            if mode not in (None, "affine"):
                raise ValueError(
                    f"[convert] {self.directory} has weights of mode {mode}, not affine."
                )


def _check_links(directory: Path) -> None:
    """Refuse links that would have the copy hold files which are not the model's."""
    allowed = [directory]
    if directory.parent.name == "snapshots":  # the hub's cache, whose snapshots are links
        allowed.append(directory.parent.parent / "blobs")
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and path.is_file() and path.resolve().parent not in allowed:
            raise ValueError(
                f"[convert] {path} is a link to {path.resolve()}, outside of the model; "
                "put the file itself there."
            )


def _weight_files(directory: Path) -> list[Path]:
    """Return the files that hold the weights, after a check of their headers and names."""
    from vllm_metal import _core
    from vllm_metal.pytorch_weights import WEIGHTS as PYTORCH_WEIGHTS
    from vllm_metal.pytorch_weights import read_pickle

    _core.check_weight_files(str(directory), read_pickle=read_pickle)
    single = directory / WEIGHTS
    if not any(path.exists() for path in (single, _index_of(single))):
        single = directory / PYTORCH_WEIGHTS
    if not _index_of(single).exists():
        return [single]
    index = read_json(_index_of(single))
    names = sorted(set(index["weight_map"].values()))
    if not names:
        raise ValueError(f"[convert] {_index_of(single)} names no tensor.")
    return [directory / name for name in names]


def _index_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.index.json")


def _read_pickle(file: Path) -> dict[str, "mx.array"]:
    import mlx.core as mx

    from vllm_metal.pytorch_weights import read_pickle

    return {name: mx.array(tensor) for name, tensor in read_pickle(file).items()}


def _other_files(directory: Path) -> list[Path]:
    return [
        path
        for path in sorted(directory.iterdir())
        if path.is_file()
        and path.suffix not in _NOT_COPIED
        and path.name not in (MANIFEST, _CONFIG)
        and not path.name.endswith(".index.json")
    ]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except ValueError as error:
        raise ValueError(f"[convert] {path} is not JSON: {error}.") from error
    if not isinstance(config, dict) or not isinstance(_quantization_of(config), dict):
        raise ValueError(f"[convert] {path} must hold an object, and so must its `quantization`.")
    return config


def _quantization_of(config: dict[str, Any]) -> Any:
    """Return how the model is quantised, an empty dict when it is not."""
    return config.get("quantization") or config.get("quantization_config") or {}
