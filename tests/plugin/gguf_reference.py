# SPDX-License-Identifier: Apache-2.0
"""What an imported model must compute: the `gguf` package's weights and transformers' Llama."""

import json
from pathlib import Path

import gguf
import numpy as np

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def reference_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the float32 weights by the `gguf` package, under Hugging Face's names and order."""
    reader = gguf.GGUFReader(path)
    prefix = "llama.attention.head_count"
    heads = {
        "attn_q": int(reader.fields[prefix].contents()),
        "attn_k": int(reader.fields[prefix + "_kv"].contents()),
    }
    weights = {}
    for tensor in reader.tensors:
        *layer, role, parameter = tensor.name.split(".")
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if role in heads:
            values = restore(values, heads[role])
        module = f"model.layers.{layer[1]}." if layer else ""
        weights[f"{module}{_NAMES[role]}.{parameter}"] = values
    return weights


def restore(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of the rows of each head, pairs for its rotary embedding."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def imported_weights(directory: Path) -> dict[str, np.ndarray]:
    """Return the float32 weights as MLX's own operation dequantises them."""
    import mlx.core as mx

    config = json.loads((directory / "config.json").read_text())
    settings = config.get("quantization")
    arrays = mx.load(str(directory / "model.safetensors"))
    weights = {}
    for name, array in arrays.items():
        module, parameter = name.rsplit(".", 1)
        if parameter in ("scales", "biases"):
            continue
        if f"{module}.scales" in arrays and parameter == "weight":
            layer = settings.get(module, settings)
            scales, biases = (
                arrays[f"{module}.{part}"].astype(mx.float32) for part in ("scales", "biases")
            )
            array = mx.dequantize(  # noqa: PLW2901
                array, scales, biases, group_size=layer["group_size"], bits=layer["bits"]
            )
        weights[name] = np.array(array.astype(mx.float32))
    return weights


def assert_same_weights(directory: Path, file: Path) -> None:
    imported, reference = imported_weights(directory), reference_weights(file)
    assert imported.keys() == reference.keys()
    for name, values in reference.items():
        np.testing.assert_array_equal(imported[name], values, err_msg=name)


def mlx_lm_logits(directory: Path, prompt: list[int]) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([prompt]))[0])


def transformers_logits(directory: Path, file: Path, prompt: list[int]) -> np.ndarray:
    """Return the logits of transformers on the float32 weights that the `gguf` package reads."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    model = LlamaForCausalLM(AutoConfig.from_pretrained(directory)).to(torch.float32).eval()
    weights = {name: torch.from_numpy(array) for name, array in reference_weights(file).items()}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    model.load_state_dict(weights)
    with torch.inference_mode():
        return model(torch.tensor([prompt])).logits[0].numpy()


def assert_same_logits(directory: Path, file: Path, prompt: list[int]) -> None:
    actual = mlx_lm_logits(directory, prompt)
    expected = transformers_logits(directory, file, prompt)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
