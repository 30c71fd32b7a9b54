# SPDX-License-Identifier: Apache-2.0
"""Tiny random configurations of every supported architecture, one row each.

A row names the architecture, as in src/models/architectures.inc, what is special about it, and the
keyword arguments of its transformers config. A test fails when an architecture has no row.
"""

from dataclasses import dataclass, field
from typing import Any

LLAMA = dict(
    hidden_size=64,
    intermediate_size=112,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=160,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    # Well above transformers' default, so that attention and logits are not all alike.
    initializer_range=0.12,
)


@dataclass(frozen=True)
class Row:
    """A tiny model to compare with transformers."""

    architecture: str
    name: str
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.architecture}-{self.name}"


def llama(name: str, **changes: Any) -> Row:
    return Row("LlamaForCausalLM", name, LLAMA | changes)


def rope(rope_type: str, **settings: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=rope_type, rope_theta=10000.0, **settings))


ROWS = [
    llama("grouped-queries"),
    llama("one-key-head", num_key_value_heads=1),
    llama("all-heads", num_key_value_heads=4),
    llama("three-to-one", hidden_size=72, num_attention_heads=9, num_key_value_heads=3, head_dim=8),
    llama("tied", tie_word_embeddings=True),
    llama("biases", attention_bias=True, mlp_bias=True),
    llama("head-dim-of-its-own", head_dim=24),
    llama(
        "odd-sizes", hidden_size=60, intermediate_size=101, vocab_size=157, num_attention_heads=6
    ),
    llama("one-layer", num_hidden_layers=1),
    llama(
        "theta",
        **rope("default") | dict(rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    ),
    llama("rope-linear", **rope("linear", factor=3.0)),
    llama("rope-dynamic", **rope("dynamic", factor=2.0) | dict(max_position_embeddings=32)),
    llama(
        "rope-llama3",
        **rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    llama("rope-yarn", **rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    llama(
        "rope-yarn-mscale",
        **rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=32,
            mscale=1.0,
            mscale_all_dim=0.7,
            beta_fast=16.0,
            beta_slow=2.0,
        ),
    ),
    Row("MistralForCausalLM", "no-window", LLAMA | dict(sliding_window=None)),
]
