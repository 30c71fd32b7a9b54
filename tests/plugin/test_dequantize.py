# SPDX-License-Identifier: Apache-2.0
"""Copies with plain weights: what each weight is, what the copy computes, and when it is made."""

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from vllm_metal import cli
from vllm_metal.dequantize import dequantize
from vllm_metal.import_gguf import import_gguf
from vllm_metal.model_directory import verify_model_dir

from tests.plugin.gguf_reference import reference_weights
from tests.plugin.tiny_gguf import write_tiny_gguf

PROMPT = [1, 7, 40, 99, 3, 12, 200, 5]


@pytest.fixture
def gguf_file(tmp_path):
    """Layers of 4 bits, one of 8, one that is not quantised."""
    types = {"blk.1.ffn_down.weight": GgmlType.F16, "blk.0.attn_q.weight": GgmlType.Q8_0}
    return write_tiny_gguf(tmp_path / "x.gguf", types=types, tied=False, biases=True)


@pytest.fixture
def quantised(tmp_path, gguf_file):
    return import_gguf(gguf_file, tmp_path / "quantised")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_those_of_the_gguf_package_rounded_once(tmp_path, quantised, gguf_file, dtype):
    from safetensors.torch import load_file

    copy = dequantize(quantised, tmp_path / "copy", dtype)
    weights = load_file(copy / "model.safetensors")
    reference = reference_weights(gguf_file)
    assert weights.keys() == reference.keys()
    for name, values in reference.items():
        expected = torch.from_numpy(np.array(values)).to(getattr(torch, dtype))
        assert torch.equal(weights[name], expected), name


def test_transformers_loads_the_copy_and_computes_with_these_weights(
    tmp_path, quantised, gguf_file
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    copy = dequantize(quantised, tmp_path / "copy", "float32")
    model = AutoModelForCausalLM.from_pretrained(copy)
    for name, values in reference_weights(gguf_file).items():
        assert torch.equal(model.state_dict()[name], torch.from_numpy(np.array(values))), name
    assert model(torch.tensor([PROMPT])).logits.isfinite().all()
    text = "some text"
    ids = [AutoTokenizer.from_pretrained(path)(text).input_ids for path in (quantised, copy)]
    assert ids[0] == ids[1]


def test_config_tells_of_no_quantisation(tmp_path, quantised):
    config = json.loads((quantised / "config.json").read_text())
    copy = dequantize(quantised, tmp_path / "copy")
    del config["quantization"], config["quantization_config"]
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert json.loads((copy / "config.json").read_text()) == config


def test_is_made_once_and_anew_for_another_dtype(tmp_path, quantised):
    copy = dequantize(quantised, tmp_path / "copy")
    made = (copy / "model.safetensors").stat().st_mtime_ns
    assert dequantize(quantised, copy) == copy
    assert (copy / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="--force"):
        dequantize(quantised, copy, "float32")
    dequantize(quantised, copy, "float32", force=True)
    assert json.loads((copy / "config.json").read_text())["dtype"] == "float32"
    verify_model_dir(copy)


def test_refuses_a_model_that_is_not_quantised(tmp_path, quantised, capsys):
    copy = dequantize(quantised, tmp_path / "copy")
    assert cli.main(["dequantize", str(copy), str(tmp_path / "again")]) == 1
    assert "has no `quantization`" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_command_prints_the_directory(tmp_path, quantised, capsys):
    target = tmp_path / "copy"
    assert cli.main(["dequantize", str(quantised), str(target), "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
