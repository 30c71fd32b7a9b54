# SPDX-License-Identifier: Apache-2.0
"""Copies of model directories: what each weight is, what loads them, when they are made."""

import json
import os
import shutil
import signal
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from vllm_metal import cli, safetensors_shards
from vllm_metal.convert import Options, convert
from vllm_metal.import_gguf import import_gguf
from vllm_metal.model_directory import MANIFEST, verify_model_dir
from vllm_metal.selftest.models_checks import RELATIVE_TOLERANCE

from tests.parity.pair import Requests, relative_error
from tests.plugin.gguf_reference import imported_weights, mlx_lm_logits, reference_weights
from tests.plugin.tiny_gguf import write_tiny_gguf
from tests.plugin.tiny_model import LLAMA3_ROPE, write_tiny_llama

PROMPT = [1, 7, 40, 90, 3, 12, 20, 5]
TO_BFLOAT16 = Options(dequantize=True)
TO_FLOAT32 = Options(dequantize=True, dtype="float32")
TO_4_BITS = Options(q_bits=4, q_group_size=32)
# The tiny model's rope settings in the layout that mlx-lm reads.
OLDER_ROPE = {
    "rope_theta": LLAMA3_ROPE["rope_theta"],
    "rope_scaling": {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"},
}


@pytest.fixture
def gguf_file(tmp_path):
    """Layers of 4 bits, one of 8, one that is not quantised."""
    types = {"blk.1.ffn_down.weight": GgmlType.F16, "blk.0.attn_q.weight": GgmlType.Q8_0}
    return write_tiny_gguf(tmp_path / "x.gguf", types=types, tied=False, biases=True)


@pytest.fixture
def quantised(tmp_path, gguf_file):
    return import_gguf(gguf_file, tmp_path / "quantised")


@pytest.fixture
def plain(tmp_path, tiny_llama):
    """A model in Hugging Face's format that a test may change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "plain"))


def load(directory: Path) -> dict[str, mx.array]:
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= mx.load(str(file))
    return tensors


def assert_equal(actual: dict[str, mx.array], expected: dict[str, mx.array]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert mx.array_equal(actual[name], tensor).item(), name


def config_of(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())


def change_config(directory: Path, **changes) -> None:
    (directory / "config.json").write_text(json.dumps(config_of(directory) | changes))


def format_of(directory: Path) -> str:
    file = next(directory.glob("*.safetensors"))
    return mx.load(str(file), return_metadata=True)[1]["format"]


def shard(directory: Path) -> Path:
    """Have transformers write the model anew, in several files."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    (directory / "model.safetensors").unlink()
    model.save_pretrained(directory, max_shard_size="50KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# Quantised copies.


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype"),
    [
        (2, 32, None),
        (3, 64, "float16"),
        (4, 32, "bfloat16"),
        (4, None, None),
        (5, 32, "float16"),
        (6, 32, "float32"),
        (8, 32, None),
    ],
)
def test_quantises_as_mlx_lm_does(tmp_path, tiny_llama, bits, group_size, dtype):
    """Rows of 96 do not divide into groups of 64, the default: some layers stay plain."""
    import mlx_lm

    reference = tmp_path / "reference"
    options = {"q_bits": bits, "q_group_size": group_size, "dtype": dtype}
    mlx_lm.convert(str(tiny_llama), reference, quantize=True, **options)
    copy = convert(tiny_llama, tmp_path / "copy", Options(**options))
    assert_equal(load(copy), load(reference))
    assert format_of(copy) == format_of(reference) == "mlx"
    keys = ("quantization", "quantization_config")
    assert [config_of(copy)[key] for key in keys] == [config_of(reference)[key] for key in keys]


@pytest.mark.parametrize("options", [TO_4_BITS, Options(q_bits=8), Options(q_bits=3)])
@pytest.mark.parametrize("tied", [False, True])
def test_mlx_lm_and_the_core_compute_the_same_with_a_quantised_copy(tmp_path, options, tied):
    from vllm_metal import _core

    model = write_tiny_llama(tmp_path / "model", tie_word_embeddings=tied)
    copy = convert(model, tmp_path / "copy", options)
    runner = _core.ModelRunner(str(copy), (copy / "config.json").read_text(), "float32")
    runner.initialize_kv_cache(64, 16)
    runner.keep_logits(True)
    requests = Requests(runner)
    requests.add("a", PROMPT)
    logits = requests.step({"a": len(PROMPT)})["a"]
    assert relative_error(logits, mlx_lm_logits(copy, PROMPT)[-1]) < RELATIVE_TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, {"rope_theta": 5.0}),
        ({"rope_parameters": LLAMA3_ROPE}, OLDER_ROPE),
        (
            {"rope_parameters": LLAMA3_ROPE, "rope_theta": 1.0, "rope_scaling": None},
            {"rope_scaling": OLDER_ROPE["rope_scaling"]},
        ),
        ({"rope_parameters": {"full_attention": LLAMA3_ROPE}}, {}),
        ({"rope_parameters": None, "rope_theta": 7.0}, {}),
    ],
)
def test_rope_settings_stand_in_both_layouts(tmp_path, plain, settings, added):
    change_config(plain, **settings)
    copy = convert(plain, tmp_path / "copy", Options())
    assert config_of(copy) == config_of(plain) | added


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_in_a_tied_model_is_kept_where_it_differs(tmp_path, plain, differs):
    """mlx-lm refuses a model that is tied and has a quantised head."""
    tensors = load(plain)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * (2 if differs else 1)
    mx.save_safetensors(str(plain / "model.safetensors"), tensors, {"format": "pt"})
    change_config(plain, tie_word_embeddings=True)
    copy = convert(plain, tmp_path / "copy", TO_4_BITS)
    assert config_of(copy)["tie_word_embeddings"] is not differs
    assert ("lm_head.weight" in load(copy)) == differs
    assert np.isfinite(mlx_lm_logits(copy, PROMPT)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_there_and_back(tmp_path, tiny_llama, bits):
    there = convert(tiny_llama, tmp_path / "there", Options(q_bits=bits, q_group_size=32))
    back = convert(there, tmp_path / "back", TO_FLOAT32)
    weights, originals = load(back), load(tiny_llama)
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in originals.items()
    }
    expected = imported_weights(there)
    for name, tensor in originals.items():
        got, original = np.array(weights[name]), np.array(tensor)
        np.testing.assert_array_equal(got, expected[name], err_msg=name)
        if got.ndim == 1:
            np.testing.assert_array_equal(got, original, err_msg=name)
        else:  # no further off than a step between two of the numbers that the bits can say
            groups = original.reshape(-1, 32)
            step = (groups.max(axis=1) - groups.min(axis=1)) / (2**bits - 1)
            error = np.abs(got - original).reshape(-1, 32).max(axis=1)
            assert (error > 0).any(), name
            assert (error <= step).all(), name
    original_config = config_of(tiny_llama)
    changes = OLDER_ROPE | {"dtype": "float32", "torch_dtype": "float32"}
    assert config_of(back) == original_config | changes


# Dequantised copies.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_those_of_the_gguf_package_rounded_once(tmp_path, quantised, gguf_file, dtype):
    from safetensors.torch import load_file

    copy = convert(quantised, tmp_path / "copy", Options(dequantize=True, dtype=dtype))
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

    copy = convert(quantised, tmp_path / "copy", TO_FLOAT32)
    model = AutoModelForCausalLM.from_pretrained(copy)
    for name, values in reference_weights(gguf_file).items():
        assert torch.equal(model.state_dict()[name], torch.from_numpy(np.array(values))), name
    assert model(torch.tensor([PROMPT])).logits.isfinite().all()
    text = "some text"
    ids = [AutoTokenizer.from_pretrained(path)(text).input_ids for path in (quantised, copy)]
    assert ids[0] == ids[1]


def test_config_tells_of_no_quantisation(tmp_path, quantised):
    config = config_of(quantised)
    copy = convert(quantised, tmp_path / "copy", TO_BFLOAT16)
    del config["quantization"], config["quantization_config"]
    config |= {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    assert config_of(copy) == config


def test_settings_may_stand_under_the_other_key_alone(tmp_path, quantised):
    expected = load(convert(quantised, tmp_path / "expected", TO_BFLOAT16))
    config = config_of(quantised)
    del config["quantization"]
    (quantised / "config.json").write_text(json.dumps(config))
    copy = convert(quantised, tmp_path / "copy", TO_BFLOAT16)
    assert_equal(load(copy), expected)
    assert "quantization_config" not in config_of(copy)


# Plain copies.


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float32"])
def test_a_plain_copy_is_in_the_other_format(tmp_path, tiny_llama, dtype):
    from transformers import AutoModelForCausalLM

    copy = convert(tiny_llama, tmp_path / "copy", Options(dtype=dtype))
    originals = load(tiny_llama)
    kind = getattr(mx, dtype or "float32")
    assert_equal(load(copy), {name: tensor.astype(kind) for name, tensor in originals.items()})
    assert (format_of(tiny_llama), format_of(copy)) == ("pt", "mlx")
    changes = {"dtype": dtype, "torch_dtype": dtype} if dtype else {}
    assert config_of(copy) == config_of(tiny_llama) | OLDER_ROPE | changes
    back = convert(copy, tmp_path / "back", Options())
    assert format_of(back) == "pt"
    assert_equal(load(back), load(copy))
    for directory in (copy, back):
        model = AutoModelForCausalLM.from_pretrained(directory)
        assert model.dtype == getattr(torch, dtype or "float32")
        assert model.config.rope_parameters == LLAMA3_ROPE


def test_a_plain_copy_of_a_quantised_model_stays_quantised(tmp_path, quantised):
    copy = convert(quantised, tmp_path / "copy", Options(dtype="float32"))
    originals = load(quantised)
    assert_equal(
        load(copy),
        {
            name: tensor if tensor.dtype == mx.uint32 else tensor.astype(mx.float32)
            for name, tensor in originals.items()
        },
    )
    assert format_of(copy) == "mlx"
    assert config_of(copy)["quantization"] == config_of(quantised)["quantization"]


# Files.


def test_reads_shards(tmp_path, plain):
    expected = load(convert(plain, tmp_path / "expected", TO_4_BITS))
    shard(plain)
    # What the index does not name is not the model's: some hold it twice, by other names.
    mx.save_safetensors(str(plain / "consolidated.safetensors"), {"norm.weight": mx.ones(64)})
    assert_equal(load(convert(plain, tmp_path / "copy", TO_4_BITS)), expected)


def test_writes_shards_of_bounded_size(tmp_path, tiny_llama, monkeypatch):
    from transformers import AutoModelForCausalLM
    from vllm_metal import _core

    whole = convert(tiny_llama, tmp_path / "whole", Options(dtype="float16"))
    assert not (whole / "model.safetensors.index.json").exists()
    limit = 20_000
    monkeypatch.setattr(safetensors_shards, "SHARD_BYTES", limit)
    copy = convert(tiny_llama, tmp_path / "copy", Options(dtype="float16"))
    assert_equal(load(copy), load(whole))
    files = sorted(file.name for file in copy.glob("*.safetensors"))
    assert files == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    assert len(files) > 3
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == sorted(load(tiny_llama))
    assert list(index["weight_map"].values()) == sorted(index["weight_map"].values())
    sizes = {}
    for file in files:
        tensors = mx.load(str(copy / file))
        assert {name for name, place in index["weight_map"].items() if place == file} == set(
            tensors
        )
        sizes[file] = sum(tensor.nbytes for tensor in tensors.values())
        assert sizes[file] <= limit
    assert index["metadata"]["total_size"] == sum(sizes.values())
    _core.check_weight_files(str(copy))
    model = AutoModelForCausalLM.from_pretrained(copy)
    assert model(torch.tensor([PROMPT])).logits.isfinite().all()
    quantised = convert(copy, tmp_path / "quantised", TO_4_BITS)
    assert np.isfinite(mlx_lm_logits(quantised, PROMPT)).all()


def test_a_tensor_larger_than_a_shard_has_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_shards, "SHARD_BYTES", 100)
    tensors = {"a": mx.ones(5), "b": mx.ones(50), "c": mx.ones(5), "d": mx.ones(5)}
    safetensors_shards.write_weights(tmp_path, dict(tensors), "mlx")
    files = sorted(tmp_path.glob("*.safetensors"))
    assert [list(mx.load(str(file))) for file in files[:2]] == [["a"], ["b"]]
    assert len(files) == 3
    assert_equal(load(tmp_path), tensors)


def test_every_data_type_is_written_in_place(tmp_path):
    """torch views tensors where they lie in the file and refuses those that are not aligned."""
    from safetensors.torch import load_file

    tensors = {
        "a": mx.array([True, False, True]),
        "b": mx.arange(3).astype(mx.bfloat16),
        "c": mx.arange(5).astype(mx.float32),
        "d": mx.array(7.0),
        "e": mx.zeros((0, 4)),
    }
    for kind in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"):
        tensors[kind] = mx.arange(3).astype(getattr(mx, kind))
    tensors["float16"] = mx.arange(3).astype(mx.float16)
    safetensors_shards.write_weights(tmp_path, dict(tensors), "pt")
    assert_equal(load(tmp_path), tensors)
    loaded = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.float().tolist() for name, tensor in loaded.items()} == {
        name: tensor.astype(mx.float32).tolist() for name, tensor in tensors.items()
    }
    assert all(tensor.data_ptr() % tensor.element_size() == 0 for tensor in loaded.values())


@pytest.mark.parametrize("options", [Options(), TO_FLOAT32, TO_4_BITS])
def test_memory_holds_a_few_tensors_at_most(tmp_path, plain, options):
    count, rows = 24, 4096
    tensors = {f"layer.{i}.weight": mx.full((rows, 64), i + 0.5) for i in range(count)}
    if options.dequantize:
        parts = {name: mx.quantize(tensor, 64, 4) for name, tensor in tensors.items()}
        tensors = {
            name.replace("weight", part): array
            for name, arrays in parts.items()
            for part, array in zip(("weight", "scales", "biases"), arrays, strict=True)
        }
        change_config(plain, quantization={"group_size": 64, "bits": 4})
    mx.save_safetensors(str(plain / "model.safetensors"), tensors, {"format": "pt"})
    tensors.clear()
    parts = None
    live = []

    def progress(done, total):
        live.append(mx.get_active_memory())

    mx.reset_peak_memory()
    before = mx.get_active_memory()
    convert(plain, tmp_path / "copy", options, progress=progress)
    assert len(live) >= count
    tensor_bytes = rows * 64 * 4
    assert max(live) - before < 3 * tensor_bytes
    assert mx.get_peak_memory() - before < 5 * tensor_bytes


def test_copies_what_belongs_to_the_model_and_executes_nothing(tmp_path, plain):
    (plain / "modeling_tiny.py").write_text("raise SystemExit('executed')")
    change_config(plain, auto_map={"AutoModelForCausalLM": "modeling_tiny.TinyModel"})
    for name in ("pytorch_model.bin", "model.gguf", "pytorch_model.bin.index.json"):
        (plain / name).write_text("the model once more")
    (plain / "original").mkdir()
    copy = convert(plain, tmp_path / "copy", TO_4_BITS)
    names = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    names |= {"modeling_tiny.py"}
    assert set(contents(copy)) == {*names, "config.json", "model.safetensors", MANIFEST}
    for name in names:
        assert (copy / name).read_bytes() == (plain / name).read_bytes()


def test_a_snapshot_in_the_cache_of_the_hub_is_a_model(tmp_path, tiny_llama):
    """Its files are links to blobs."""
    blobs = tmp_path / "models--tiny" / "blobs"
    snapshot = tmp_path / "models--tiny" / "snapshots" / "abc"
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
    for number, file in enumerate(tiny_llama.iterdir()):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    copy = convert(snapshot, tmp_path / "copy", Options())
    assert not any(path.is_symlink() for path in copy.iterdir())
    assert_equal(load(copy), load(tiny_llama))


# When a copy is made.


def test_is_made_once_and_anew_for_another_dtype(tmp_path, quantised):
    copy = convert(quantised, tmp_path / "copy", TO_BFLOAT16)
    made = (copy / "model.safetensors").stat().st_mtime_ns
    assert convert(quantised, copy, TO_BFLOAT16) == copy
    assert convert(quantised, copy, Options(dequantize=True, dtype="bfloat16")) == copy
    assert (copy / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="--force"):
        convert(quantised, copy, TO_FLOAT32)
    convert(quantised, copy, TO_FLOAT32, force=True)
    assert config_of(copy)["dtype"] == "float32"
    verify_model_dir(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_is_made_anew_when_a_file_of_the_source_changes(tmp_path, plain, name):
    copy = convert(plain, tmp_path / "copy", Options())
    content = bytearray((plain / name).read_bytes())
    if name.endswith(".json"):
        content += b"\n"
    else:
        content[-1] ^= 1
    (plain / name).write_bytes(content)
    with pytest.raises(ValueError, match="--force"):
        convert(plain, copy, Options())
    convert(plain, copy, Options(), force=True)
    assert_equal(load(copy), load(plain))


def test_a_damaged_copy_is_mended(tmp_path, plain):
    copy = convert(plain, tmp_path / "copy", TO_4_BITS)
    before = contents(copy)
    (copy / "model.safetensors").write_bytes(b"short")
    convert(plain, copy, TO_4_BITS)
    assert contents(copy) == before


class StopError(Exception):
    pass


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(tmp_path, plain, existing):
    target = tmp_path / "models" / "copy"
    if existing:
        convert(plain, target, TO_4_BITS)
    before = contents(target) if existing else None

    def stop(done, total):
        assert list(target.parent.glob(".copy.*.partial/model.safetensors"))
        raise StopError

    with pytest.raises(StopError):
        convert(plain, target, Options(), force=True, progress=stop)
    if existing:
        assert contents(target) == before
    assert list(target.parent.iterdir()) == ([target] if existing else [])


def test_ctrl_c_leaves_nothing(tmp_path, plain):
    target = tmp_path / "models" / "copy"

    def interrupt(done, total):
        if done < total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        convert(plain, target, TO_4_BITS, progress=interrupt)
    assert list(target.parent.iterdir()) == []


def test_a_full_disk_is_found_first(tmp_path, plain, monkeypatch):
    usage = shutil.disk_usage(plain)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="are needed but 0 MiB free"):
        convert(plain, tmp_path / "models" / "copy", Options())
    assert not (tmp_path / "models").exists()


def test_progress_ends_at_the_total(tmp_path, plain):
    calls = []
    copy = convert(plain, tmp_path / "copy", TO_4_BITS, progress=lambda *call: calls.append(call))
    total = sum(tensor.nbytes for tensor in load(copy).values())
    assert len(calls) == len(load(copy))
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert {call[1] for call in calls} == {total}
    assert calls[-1] == (total, total)


# The command and what it refuses.


def test_command_prints_the_directory(tmp_path, quantised, plain, capsys):
    target = tmp_path / "copy"
    command = ["convert", str(quantised), str(target), "--dequantize", "--dtype", "float16"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert config_of(target)["dtype"] == "float16"
    command = ["convert", str(plain), str(target), "--q-bits", "5", "--q-group-size", "32"]
    assert cli.main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert cli.main([*command, "--force"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    expected = {"group_size": 32, "bits": 5, "mode": "affine"}
    assert config_of(target)["quantization"] == expected


@pytest.fixture
def refusal_of(tmp_path, capsys):
    """Run the command on what it must refuse; return its message. Nothing may be written."""

    def run(source, *options):
        target = tmp_path / "models" / "copy"
        assert cli.main(["convert", str(source), str(target), *options]) == 1
        assert not target.parent.exists()
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--q-bits", "7"], "argument --q-bits: invalid choice: 7 (choose from 2, 3, 4, 5, 6, 8)"),
        (
            ["--q-bits", "4", "--q-group-size", "48"],
            "argument --q-group-size: invalid choice: 48 (choose from 32, 64, 128)",
        ),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
    ],
)
def test_refuses_values(tmp_path, plain, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["convert", str(plain), str(tmp_path / "copy"), *options])
    assert exit_.value.code == 2
    assert message.replace("'", "") in capsys.readouterr().err.replace("'", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--q-group-size", "32"], "--q-group-size 32 needs --q-bits, one of 2, 3, 4, 5, 6, 8"),
        (["--q-bits", "4", "--dequantize"], "--q-bits 4 and --dequantize exclude each other"),
        (
            ["--q-bits", "4", "--q-group-size", "128"],
            "no weight has rows that divide into groups of 128; --q-group-size may be 32, 64, 128",
        ),
    ],
)
def test_refuses_options(refusal_of, plain, options, message):
    assert message in refusal_of(plain, *options)


def test_refuses_a_model_that_is_not_quantised(tmp_path, quantised, refusal_of):
    copy = convert(quantised, tmp_path / "plain", TO_BFLOAT16)
    assert "has no `quantization`" in refusal_of(copy, "--dequantize")


def test_refuses_to_quantise_twice(quantised, refusal_of):
    message = refusal_of(quantised, "--q-bits", "4")
    assert f"{quantised} is quantised already; convert it with --dequantize first" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "has weights of gptq, not MLX's"),
        ({"quantization": {"mode": "mxfp4"}}, "has weights of mode mxfp4, not affine"),
        ({"quantization": {"lm_head": {"mode": "nvfp4"}}}, "has weights of mode nvfp4, not affine"),
        ({"quantization": [4]}, "must hold an object, and so must its `quantization`"),
    ],
)
def test_refuses_to_dequantise_other_formats(plain, refusal_of, changes, message):
    change_config(plain, **changes)
    assert message in refusal_of(plain, "--dequantize")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 32}, "is quantised but lacks 'bits'"),
        ({"group_size": 64, "bits": 4}, "cannot be dequantised: "),
        ({"group_size": "32", "bits": 4}, "cannot be dequantised: "),
    ],
)
def test_refuses_settings_that_do_not_fit_the_weights(quantised, refusal_of, settings, message):
    change_config(quantised, quantization=settings)
    refusal = refusal_of(quantised, "--dequantize")
    assert "module model." in refusal or "module lm_head" in refusal
    assert message in refusal


def test_refuses_scales_without_biases(quantised, refusal_of):
    tensors = load(quantised)
    del tensors["model.layers.0.mlp.up_proj.biases"]
    mx.save_safetensors(str(quantised / "model.safetensors"), tensors, {"format": "mlx"})
    message = refusal_of(quantised, "--dequantize")
    assert "model.layers.0.mlp.up_proj is quantised but lacks" in message


@pytest.mark.parametrize("architectures", [["OtherForCausalLM"], None, "LlamaForCausalLM", [{}]])
def test_quantises_only_architectures_whose_layers_it_knows(plain, refusal_of, architectures):
    change_config(plain, architectures=architectures)
    message = refusal_of(plain, "--q-bits", "4")
    assert "LlamaForCausalLM" in message
    assert f"but is {architectures}" in message


def test_refuses_what_is_no_directory(refusal_of, plain):
    message = refusal_of("organisation/model", "--q-bits", "4")
    assert "organisation/model is not a directory" in message
    assert "has to be downloaded first: hf download organisation/model" in message
    assert "config.json is not a directory" in refusal_of(plain / "config.json")


def test_refuses_a_directory_without_a_model(tmp_path, plain, refusal_of):
    (tmp_path / "empty").mkdir()
    assert "has neither model.safetensors nor" in refusal_of(tmp_path / "empty")
    (plain / "config.json").write_text("{")
    assert f"{plain / 'config.json'} is not JSON" in refusal_of(plain)
    (plain / "config.json").unlink()
    assert str(plain / "config.json") in refusal_of(plain)


def test_refuses_a_config_that_is_no_small_file(plain, refusal_of):
    config = plain / "config.json"
    config.write_text('{"a":' * 200_000)
    assert f"{config} is not JSON: it is nested too deep" in refusal_of(plain)
    os.truncate(config, 100_000_000_000)
    assert f"{config} is not JSON: it has 100000000000 bytes" in refusal_of(plain)
    config.unlink()
    os.mkfifo(config)
    assert f"{config} is not JSON: it is not a file" in refusal_of(plain)


def test_refuses_damaged_weights(plain, refusal_of):
    content = (plain / "model.safetensors").read_bytes()
    for size in (0, 7, 100, len(content) - 1):
        (plain / "model.safetensors").write_bytes(content[:size])
        assert f"[safetensors] {plain / 'model.safetensors'}: " in refusal_of(plain)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "a/b", ".."])
def test_refuses_an_index_that_leads_out_of_the_model(plain, refusal_of, name):
    shutil.copyfile(plain / "model.safetensors", plain.parent / "outside.safetensors")
    index = {"weight_map": dict.fromkeys(load(plain), name)}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"'{name}' is not the name of a file beside it" in refusal_of(plain)
    (plain / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "names no tensor" in refusal_of(plain)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_refuses_links_out_of_the_model(plain, refusal_of, name):
    outside = (plain / name).rename(plain.parent / "outside")
    (plain / name).symlink_to(outside)
    assert f"{plain / name} is a link to {outside}, outside of the model" in refusal_of(plain)
    inside = outside.rename(plain / "inside")
    (plain / name).unlink()
    (plain / name).symlink_to(inside.name)
    convert(plain, plain.parent / "copy", Options())


def test_never_writes_over_its_source(tmp_path, plain):
    copy = convert(plain, tmp_path / "copy", Options())
    before = contents(copy)
    for target in (copy, tmp_path, copy / ".." / "copy"):
        with pytest.raises(ValueError, match="must be another directory than"):
            convert(copy, target, TO_4_BITS, force=True)
    with pytest.raises(ValueError, match="was not written by vllm-metal"):
        convert(copy, plain, TO_4_BITS, force=True)
    assert contents(copy) == before
