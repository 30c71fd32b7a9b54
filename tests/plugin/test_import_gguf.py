# SPDX-License-Identifier: Apache-2.0
"""The weights and the config that the import writes; see also test_gguf_tokenizer.py."""

import json
import os
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType
from vllm_metal import cli
from vllm_metal.import_gguf import import_gguf, quantization_of

from tests.plugin.gguf_reference import assert_same_logits, assert_same_weights
from tests.plugin.tiny_gguf import VOCAB_SIZE, write_tiny_gguf

PROMPT = [1, 7, 40, 99, 3, 12, 200, 5]


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.mark.parametrize("linear", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "F32"])
def test_weights_equal_those_of_the_gguf_package(tmp_path, linear):
    file = write_tiny_gguf(tmp_path / "x.gguf", linear=GgmlType[linear], biases=True, tied=False)
    assert_same_weights(import_gguf(file, tmp_path / "out"), file)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linear": GgmlType.Q4_0, "biases": True, "tied": False},
        {"linear": GgmlType.Q8_0, "embedding": GgmlType.F16},
        {"linear": GgmlType.F16, "embedding": GgmlType.F32},
        {"types": {"blk.1.ffn_down.weight": GgmlType.F16, "blk.0.attn_q.weight": GgmlType.Q8_0}},
    ],
    ids=["tied", "biases", "dense_embedding", "dense", "mixed"],
)
def test_mlx_lm_computes_the_logits_of_transformers(tmp_path, options):
    file = write_tiny_gguf(tmp_path / "x.gguf", **options)
    assert_same_logits(import_gguf(file, tmp_path / "out"), file, PROMPT)


def test_config(tmp_path, tiny):
    directory = import_gguf(tiny, tmp_path / "out")
    settings = {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 32, "bits": 8},
    }
    assert json.loads((directory / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "rope_parameters": {"rope_theta": 50000.0, "rope_type": "default"},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        "pad_token_id": 2,
        "dtype": "float16",
        "torch_dtype": "float16",
        "quantization": settings,
        "quantization_config": settings,
    }


def test_config_follows_the_tensors(tmp_path):
    file = write_tiny_gguf(
        tmp_path / "x.gguf",
        linear=GgmlType.F16,
        embedding=GgmlType.F32,
        biases=True,
        tied=False,
    )
    config = json.loads((import_gguf(file, tmp_path / "out") / "config.json").read_text())
    assert config["attention_bias"] is True
    assert config["mlp_bias"] is True
    assert config["tie_word_embeddings"] is False
    assert "quantization" not in config
    assert "quantization_config" not in config


def test_transformers_reads_the_config(tmp_path, tiny):
    from transformers import AutoConfig, GenerationConfig

    directory = import_gguf(tiny, tmp_path / "out")
    config = AutoConfig.from_pretrained(directory)
    assert config.rope_parameters["rope_theta"] == 50000.0
    assert str(config.dtype) == "torch.float16"
    generation = GenerationConfig.from_pretrained(directory)
    assert generation.eos_token_id == [2, 0]
    assert generation.bos_token_id == 1
    assert generation.pad_token_id == 2


def test_quantization_names_layers_that_differ():
    assert quantization_of({"a": 4, "b": 8, "c": 4, "d": 0}) == {
        "group_size": 32,
        "bits": 4,
        "mode": "affine",
        "b": {"group_size": 32, "bits": 8},
        "d": False,
    }
    assert quantization_of({"a": 0, "b": 0}) is None


def refusal_of(file: Path, capsys) -> str:
    """Run the command on a bad file; return its message. Nothing may be written."""
    target = file.parent / "models" / "out"
    assert cli.main(["import-gguf", str(file), str(target)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not target.exists()
    assert not target.parent.exists() or not list(target.parent.iterdir())
    return captured.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "qwen2"}, 'architecture "qwen2" is not supported; allowed is llama'),
        (
            {"extra_tensors": {"blk.0.extra.weight": np.ones(4, np.float32)}},
            'tensor "blk.0.extra.weight" is not part of a llama model',
        ),
        (
            {"extra_tensors": {"rope_freqs.weight": np.ones(8, np.float32)}},
            'tensor "rope_freqs.weight" scales the rotary embedding',
        ),
        ({"metadata": {"llama.expert_count": 4}}, "mixtures of experts"),
        ({"metadata": {"llama.rope.scaling.type": "linear"}}, "llama.rope.scaling.type"),
        ({"metadata": {"tokenizer.ggml.pre": "llama-bpe"}}, "'llama-bpe'; allowed"),
        ({"types": {"blk.0.ffn_up.weight": GgmlType.Q5_0}}, "type Q5_0 (6) is not supported"),
    ],
)
def test_refuses_by_name(tmp_path, capsys, options, message):
    file = write_tiny_gguf(tmp_path / "x.gguf", **options)
    assert message in refusal_of(file, capsys)


def test_refuses_a_truncated_file(tmp_path, tiny, capsys):
    content = tiny.read_bytes()
    for size in (0, 3, 100, 5000, len(content) // 2, len(content) - 200):
        tiny.write_bytes(content[:size])
        assert f"[gguf] {tiny}: " in refusal_of(tiny, capsys)


def test_refuses_a_scale_that_overflows(tmp_path, tiny, capsys):
    tensors = gguf.GGUFReader(tiny).tensors
    offset = next(t.data_offset for t in tensors if t.name == "token_embd.weight")
    content = bytearray(tiny.read_bytes())
    content[offset + 34 : offset + 36] = np.float16(600).tobytes()
    tiny.write_bytes(content)
    message = refusal_of(tiny, capsys)
    assert 'tensor "token_embd.weight"' in message
    assert "exceeds float16" in message


def test_refuses_a_sparse_file_before_it_is_read(tmp_path, capsys):
    sparse = tmp_path / "sparse.gguf"
    sparse.write_bytes(b"GGUF")
    os.truncate(sparse, 100_000_000_000)
    start = time.monotonic()
    assert "version must be 2 or 3 but is 0" in refusal_of(sparse, capsys)
    assert time.monotonic() - start < 10


def test_refuses_what_is_no_file(tmp_path, capsys):
    assert str(tmp_path / "none.gguf") in refusal_of(tmp_path / "none.gguf", capsys)
    assert f"{tmp_path} is not a file" in refusal_of(tmp_path, capsys)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe is not a file" in refusal_of(tmp_path / "pipe", capsys)
