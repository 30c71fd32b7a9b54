# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of the fuzzers: small valid files, from which mutation starts.

`python tests/fuzz/make_corpus.py` rewrites tests/fuzz/corpus; its output is checked in.
"""

import json
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

JSON_SEEDS = {
    "config": json.dumps(
        {
            "architectures": ["LlamaForCausalLM"],
            "rms_norm_eps": 1e-05,
            "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
            "eos_token_id": [2, 0],
            "tie_word_embeddings": True,
            "sliding_window": None,
        },
        indent=2,
    ),
    "escapes": r'["\"\\\/\b\f\n\r\t", "\u00e9\ud83d\ude00", "é€😀", ""]',
    "numbers": "[0, -0, 1.5e-3, -2E+8, 9223372036854775807, 1e30, NaN, Infinity, -Infinity]",
    "nesting": "[" * 64 + "]" * 64,
    "index": json.dumps(
        {"metadata": {"total_size": 12}, "weight_map": {"a": "m-1-of-2.safetensors"}}
    ),
}

INDEX_SEEDS = {
    "empty": json.dumps({"weight_map": {}}),
    "one": json.dumps({"metadata": {"total_size": 12}, "weight_map": {"a": "model.safetensors"}}),
    "shards": json.dumps(
        {
            "metadata": {"total_size": 24},
            "weight_map": {
                "model.layers.0.mlp.up_proj.weight": "model-00001-of-00002.safetensors",
                "model.layers.0.mlp.up_proj.scales": "model-00001-of-00002.safetensors",
                "lm_head.weight": "model-00002-of-00002.safetensors",
            },
        }
    ),
    "names": json.dumps({"weight_map": {"é\n": "...", "b": " ", "c": "é.bin", "": ".a"}}),
    "elsewhere": json.dumps({"weight_map": {"a": "../b", "b": "/etc/c", "c": "d\0e"}}),
}

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 10,
}
AFFINE = {"group_size": 64, "bits": 4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

CONFIG_SEEDS = {
    "plain": json.dumps(MODEL),
    "grouped": json.dumps(
        MODEL
        | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}
        | {"max_position_embeddings": 128, "rms_norm_eps": 1e-05, "sliding_window": None}
    ),
    "quantized": json.dumps(
        MODEL | {"quantization": {**AFFINE, "mode": "affine", "lm_head": False, "a.b": {**AFFINE}}}
    ),
    "quantization_config": json.dumps(
        MODEL | {"quantization": None, "quantization_config": {**AFFINE, "c": True}}
    ),
    "quant_method": json.dumps(MODEL | {"quantization_config": {"quant_method": "awq"}}),
    "rope": json.dumps(
        MODEL | {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2}}
    ),
    "llama3": json.dumps(
        MODEL
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        }
    ),
    "yarn": json.dumps(MODEL | {"rope_parameters": {**YARN, "mscale": 1, "mscale_all_dim": 1}}),
}


def safetensors(header: dict, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS_SEEDS = {
    "empty": safetensors({}, b""),
    "metadata": safetensors({"__metadata__": {"format": "mlx"}}, b""),
    "quantized": safetensors(
        {
            "__metadata__": {"format": "mlx"},
            "a.weight": entry("U32", [1, 4], 0, 16),
            "a.scales": entry("F16", [1, 1], 16, 18),
            "a.biases": entry("F16", [1, 1], 18, 20),
        },
        bytes(20),
    ),
    "kinds": safetensors(
        {
            "scalar": entry("F32", [], 0, 4),
            "none": entry("I64", [0, 3], 4, 4),
            "bool": entry("BOOL", [2], 4, 6),
            "bf16": entry("BF16", [1, 1, 1], 6, 8),
        },
        bytes(8),
    ),
}


class Gguf:
    """Writes GGUF files; hidden size 32, 2 heads, 1 layer, 2 tokens where it is a model."""

    def __init__(self, version: int = 3) -> None:
        self.version = version
        self.metadata: list[bytes] = []
        self.tensors: list[tuple[str, list[int], int, bytes]] = []

    @staticmethod
    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    def add(self, key: str, kind: int, value: bytes) -> "Gguf":
        self.metadata.append(self.string(key) + struct.pack("<I", kind) + value)
        return self

    def add_model(self, linear_type: int) -> "Gguf":
        self.add("general.architecture", 8, self.string("llama"))
        for key, value in {
            "embedding_length": 32,
            "feed_forward_length": 32,
            "block_count": 1,
            "attention.head_count": 2,
            "attention.head_count_kv": 1,
            "context_length": 64,
        }.items():
            self.add(f"llama.{key}", 4, struct.pack("<I", value))
        self.add("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))
        norms = ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]
        linears = {"token_embd": 2, "blk.0.attn_q": 32, "blk.0.attn_k": 16, "blk.0.attn_v": 16}
        linears |= {
            f"blk.0.{name}": 32 for name in ("attn_output", "ffn_gate", "ffn_up", "ffn_down")
        }
        block = {0: 128, 1: 64, 2: 18, 3: 20, 8: 34, 30: 64}[linear_type]
        for name in norms:
            self.tensors.append((name + ".weight", [32], 0, bytes(128)))
        for name, rows in linears.items():
            self.tensors.append((name + ".weight", [32, rows], linear_type, bytes(block * rows)))
        return self

    def build(self) -> bytes:
        out = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))
        out += b"".join(self.metadata)
        data = b""
        for name, dimensions, kind, content in self.tensors:
            out += self.string(name) + struct.pack("<I", len(dimensions))
            out += struct.pack(f"<{len(dimensions)}Q", *dimensions)
            out += struct.pack("<IQ", kind, len(data))
            data += content + bytes(-len(content) % 32)
        return out + (bytes(-len(out) % 32) + data if self.tensors else b"")


def gguf_values() -> bytes:
    """Return a file with a value of every kind, and arrays."""
    scalars = "BbHhIif?"
    file = Gguf(version=2)
    for kind, code in enumerate(scalars):
        file.add(f"k{kind}", kind, struct.pack(f"<{code}", 1))
    file.add("string", 8, Gguf.string("é"))
    for kind, code in ((10, "Q"), (11, "q"), (12, "d")):
        file.add(f"k{kind}", kind, struct.pack(f"<{code}", 1))
    file.add("numbers", 9, struct.pack("<IQ3i", 5, 3, 1, 2, 3))
    file.add("words", 9, struct.pack("<IQ", 8, 2) + Gguf.string("a") + Gguf.string("b"))
    return file.build()


GGUF_SEEDS = {
    "empty": Gguf().build(),
    "values": gguf_values(),
    **{
        f"model_{name}": Gguf().add_model(kind).build()
        for name, kind in {"q4_0": 2, "q4_1": 3, "q8_0": 8, "bf16": 30}.items()
    },
}


def main() -> None:
    seeds = {
        "json": {name: text.encode() for name, text in JSON_SEEDS.items()},
        "index": {name: text.encode() for name, text in INDEX_SEEDS.items()},
        "config": {name: text.encode() for name, text in CONFIG_SEEDS.items()},
        "safetensors": SAFETENSORS_SEEDS,
        "gguf": GGUF_SEEDS,
        "import": {name: seed for name, seed in GGUF_SEEDS.items() if name.startswith("model_")},
    }
    for target, files in seeds.items():
        (CORPUS / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (CORPUS / target / name).write_bytes(content)


if __name__ == "__main__":
    main()
