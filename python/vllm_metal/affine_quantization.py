# SPDX-License-Identifier: Apache-2.0
"""MLX's affine quantisation of a model's tensors, as mlx-lm applies it.

Tensors are MLX's lazy arrays: nothing is read or computed here but shapes.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx

Q_BITS = (2, 3, 4, 5, 6, 8)
Q_GROUP_SIZES = (32, 64, 128)


def listed(values: Iterable[object]) -> str:
    """Return what is allowed, for a message."""
    return ", ".join(map(str, values))


def dequantized(stored: dict[str, "mx.array"], settings: dict[str, Any]) -> dict[str, "mx.array"]:
    """Return plain weights, the quantised ones as the float32 numbers that they stand for."""
    weights = {}
    for name, tensor in stored.items():
        module, _, parameter = name.rpartition(".")
        if f"{module}.scales" not in stored or parameter not in ("weight", "scales", "biases"):
            weights[name] = tensor
        elif parameter == "weight":
            layer = settings.get(module)
            weights[name] = _dequantized_weight(
                stored, module, layer if isinstance(layer, dict) else settings
            )
    return weights


def _dequantized_weight(
    stored: dict[str, "mx.array"], module: str, settings: dict[str, Any]
) -> "mx.array":
    import mlx.core as mx

    try:
        scales, biases = (
            stored[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")
        )
        return mx.dequantize(
            stored[f"{module}.weight"],
            scales,
            biases,
            group_size=settings["group_size"],
            bits=settings["bits"],
        )
    except KeyError as error:
        raise ValueError(f"[convert] module {module} is quantised but lacks {error}.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"[convert] module {module} cannot be dequantised: {error}") from error


def quantized(weights: dict[str, "mx.array"], bits: int, group_size: int) -> dict[str, "mx.array"]:
    """Quantise what mlx-lm quantises: linear layers and embeddings of whole groups."""
    import mlx.core as mx

    result = {}
    for name, tensor in weights.items():
        module, _, parameter = name.rpartition(".")
        is_matrix = parameter == "weight" and tensor.ndim == 2 and not module.endswith("norm")
        if (
            is_matrix
            and mx.issubdtype(tensor.dtype, mx.floating)
            and tensor.shape[-1] % group_size == 0
        ):
            parts = mx.quantize(tensor, group_size=group_size, bits=bits)
            for part, array in zip(("weight", "scales", "biases"), parts, strict=True):
                result[f"{module}.{part}"] = array
        else:
            result[name] = tensor
    if len(result) == len(weights):
        raise ValueError(
            f"[convert] no weight has rows that divide into groups of {group_size}; "
            f"--q-group-size may be {listed(Q_GROUP_SIZES)}."
        )
    return result
