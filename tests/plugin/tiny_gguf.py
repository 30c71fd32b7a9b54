# SPDX-License-Identifier: Apache-2.0
"""Writes tiny random GGUF models of architecture llama, by the `gguf` package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType
from tokenizers import pre_tokenizers

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16

CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_TOKENS = ["<think>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "Ġwor l", "Ġworl d", "1 2"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> tuple[list[str], list[int]]:
    """Return tokens and their types: control, bytes, what the merges make, user-defined."""
    normal = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(m.replace(" ", "") for m in MERGES)]
    types = [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS)
    types += [gguf.TokenType.NORMAL] * len(normal)
    types += [gguf.TokenType.USER_DEFINED] * len(USER_TOKENS)
    return [*CONTROL_TOKENS, *normal, *USER_TOKENS], [int(kind) for kind in types]


VOCAB_SIZE = len(vocabulary()[0])


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of each head for rotary embedding of pairs, as llama.cpp stores them."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_tiny_gguf(
    path: Path,
    *,
    linear: GgmlType = GgmlType.Q4_1,
    embedding: GgmlType = GgmlType.Q8_0,
    biases: bool = False,
    tied: bool = True,
    types: dict[str, GgmlType] | None = None,
    metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    architecture: str = "llama",
) -> Path:
    """Write a model with a tokenizer. `types` overrides tensors, `metadata` tokenizer keys.

    A metadata value of None leaves the key out.
    """
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, architecture)
    _add_hyperparameters(writer)
    _add_tokenizer(writer, metadata or {})
    types = types or {}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB_SIZE, HIDDEN)}
    if not tied:
        shapes["output.weight"] = (VOCAB_SIZE, HIDDEN)
    for layer in range(LAYERS):
        for role, rows, columns in _LINEARS:
            shapes[f"blk.{layer}.{role}.weight"] = (rows, columns)
            if biases:
                shapes[f"blk.{layer}.{role}.bias"] = (rows,)
        shapes |= {f"blk.{layer}.{norm}.weight": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")}
    shapes["output_norm.weight"] = (HIDDEN,)
    for name, shape in shapes.items():
        center = 1.0 if "norm" in name else 0.0
        values = (center + 0.1 * random.standard_normal(shape)).astype(np.float32)
        default = embedding if name == "token_embd.weight" else linear
        kind = types.get(name, default if len(shape) == 2 else GgmlType.F32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_LINEARS = [
    ("attn_q", HEADS * HEAD_DIM, HIDDEN),
    ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
    ("attn_output", HIDDEN, HEADS * HEAD_DIM),
    ("ffn_gate", INTERMEDIATE, HIDDEN),
    ("ffn_up", INTERMEDIATE, HIDDEN),
    ("ffn_down", HIDDEN, INTERMEDIATE),
]


def _add_hyperparameters(writer: gguf.GGUFWriter) -> None:
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_context_length(256)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)


def _add_tokenizer(writer: gguf.GGUFWriter, changes: dict[str, Any]) -> None:
    tokens, token_types = vocabulary()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": token_types,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    } | changes
    for key, value in metadata.items():
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
