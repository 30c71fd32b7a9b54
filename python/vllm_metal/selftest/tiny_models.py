# SPDX-License-Identifier: Apache-2.0
"""Tiny models of random numbers, of several architectures, made without a network."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BASE: dict[str, Any] = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,  # one that GPUs have kernels for
    vocab_size=320,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    hidden_act="silu",
    tie_word_embeddings=False,
    attention_bias=False,
    mlp_bias=False,
)

_GROUP_SIZE = 64

LLAMA3_ROPE = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=128,
)


@dataclass(frozen=True, eq=False)  # known by identity: a dict has no hash
class TinyModel:
    """What to make."""

    name: str
    architecture: str
    model_type: str
    changes: dict[str, Any] = field(default_factory=dict)
    q_bits: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        kind = {"architectures": [self.architecture], "model_type": self.model_type}
        return kind | {"dtype": "float32"} | BASE | self.changes


MODELS = (
    TinyModel("llama", "LlamaForCausalLM", "llama"),
    TinyModel(
        "llama_biases_tied",
        "LlamaForCausalLM",
        "llama",
        dict(
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            head_dim=128,
            num_key_value_heads=1,
            rope_scaling=LLAMA3_ROPE,
        ),
    ),
    TinyModel("llama_4_bits", "LlamaForCausalLM", "llama", q_bits=4),
    TinyModel("mistral", "MistralForCausalLM", "mistral", dict(sliding_window=None)),
)


def write_model(model: TinyModel, directory: Path) -> Path:
    """Write config and weights, the same every time, into a folder of `directory`; return it."""
    folder = directory / model.name
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    write_tensors(folder / "model.safetensors", weights(config), config["dtype"], model.q_bits)
    if model.q_bits is not None:
        config["quantization"] = {"group_size": _GROUP_SIZE, "bits": model.q_bits}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_tensors(
    file: Path, tensors: dict[str, np.ndarray], dtype: str, q_bits: int | None = None
) -> None:
    """Write a safetensors file, with matrices quantised if q_bits says so."""
    import mlx.core as mx

    from vllm_metal.affine_quantization import quantized

    with mx.stream(mx.cpu):
        arrays = {
            name: mx.array(tensor).astype(getattr(mx, dtype)) for name, tensor in tensors.items()
        }
        if q_bits is not None:
            arrays = quantized(arrays, q_bits, _GROUP_SIZE)
        mx.save_safetensors(str(file), arrays, {"format": "pt" if q_bits is None else "mlx"})


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Read float32 tensors of a safetensors file."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        loaded = mx.load(str(file))
        assert isinstance(loaded, dict)
        return {name: np.array(array) for name, array in loaded.items()}


def weights(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return random float32 tensors by the names that models of the Llama family have."""
    random = np.random.default_rng(0)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    tensors: dict[str, np.ndarray] = {}

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = 1 + 0.1 * random.standard_normal(hidden, np.float32)

    def matrix(name: str, rows: int, columns: int, bias: bool = False) -> None:
        values = random.standard_normal((rows, columns), np.float32)
        tensors[f"{name}.weight"] = values * np.float32(1.2 / columns**0.5)
        if bias:
            tensors[f"{name}.bias"] = np.float32(0.1) * random.standard_normal(rows, np.float32)

    matrix("model.embed_tokens", config["vocab_size"], hidden)
    tensors["model.embed_tokens.weight"] *= np.float32(hidden**0.5)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm")
        norm(f"{prefix}.post_attention_layernorm")
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            matrix(f"{prefix}.self_attn.{name}", rows, hidden, config["attention_bias"])
        matrix(f"{prefix}.self_attn.o_proj", hidden, queries, config["attention_bias"])
        for name in ("gate_proj", "up_proj"):
            matrix(f"{prefix}.mlp.{name}", inner, hidden, config["mlp_bias"])
        matrix(f"{prefix}.mlp.down_proj", hidden, inner, config["mlp_bias"])
    norm("model.norm")
    if not config["tie_word_embeddings"]:
        matrix("lm_head", config["vocab_size"], hidden)
    return tensors
