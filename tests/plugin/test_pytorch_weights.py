# SPDX-License-Identifier: Apache-2.0
"""Models in pytorch_model.bin: the same tokens as from safetensors, nothing executed."""

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
import torch
from safetensors.torch import load_file
from vllm import SamplingParams
from vllm_metal import _core, cli
from vllm_metal.convert import Options, convert
from vllm_metal.pytorch_weights import read_pickle
from vllm_metal.safetensors_shards import WEIGHTS

from tests.plugin.conftest import one_engine_at_a_time
from tests.plugin.tiny_model import write_tiny_llama

PROMPTS = [{"prompt_token_ids": [1, 7, 40, 90]}, {"prompt_token_ids": [5, *range(20, 60)]}]
GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)


class Runs:
    """A value whose unpickling runs a command."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self):
        return os.system, (self._command,)


def as_pickle(source: Path, directory: Path, dtype=None, shards=1, **options) -> Path:
    """Copy a model with its weights in files of torch.save; tensors of other dtypes if asked."""
    shutil.copytree(source, directory, ignore=lambda *_: [WEIGHTS])
    state = {name: tensor.to(dtype) for name, tensor in load_file(source / WEIGHTS).items()}
    write_pickles(directory, state, shards, **options)
    return directory


def write_pickles(directory: Path, state: dict, shards=1, **options) -> None:
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin", **options)
        return
    files = {}
    for shard in range(shards):
        name = f"pytorch_model-{shard + 1:05}-of-{shards:05}.bin"
        names = sorted(state)[shard::shards]
        torch.save({key: state[key] for key in names}, directory / name, **options)
        files |= dict.fromkeys(names, name)
    write_index(directory, files)


def write_index(directory: Path, files: dict[str, str]) -> None:
    path = directory / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))


def as_safetensors(source: Path, directory: Path, dtype: torch.dtype) -> Path:
    from safetensors.torch import save_file

    shutil.copytree(source, directory, ignore=lambda *_: [WEIGHTS])
    state = {name: tensor.to(dtype) for name, tensor in load_file(source / WEIGHTS).items()}
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def outputs(model: Path) -> list[tuple]:
    with one_engine_at_a_time(model, max_model_len=128, num_gpu_blocks_override=40) as make:
        results = make().generate(PROMPTS, GREEDY, use_tqdm=False)
    return [
        (list(o.token_ids), [next(iter(p.values())).logprob for p in o.logprobs])
        for (o,) in (result.outputs for result in results)
    ]


def error_of(directory: Path) -> str:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        _core.check_weight_files(str(directory), read_pickle=read_pickle)
    return str(caught.value)


@pytest.fixture
def refusal(tmp_path):
    """Say what is wrong with a file of torch.save."""

    def refuse(value, **options):
        torch.save(value, tmp_path / "pytorch_model.bin", **options)
        return error_of(tmp_path)

    return refuse


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_tokens_and_logprobs_are_those_of_the_safetensors_copy(tmp_path, tiny_llama, dtype):
    expected = outputs(as_safetensors(tiny_llama, tmp_path / "safetensors", dtype))
    assert len({tuple(tokens) for tokens, _ in expected}) == 2
    assert outputs(as_pickle(tiny_llama, tmp_path / "single", dtype)) == expected
    assert outputs(as_pickle(tiny_llama, tmp_path / "sharded", dtype, shards=3)) == expected


def test_tied_weights_under_two_names(tmp_path):
    """torch.save stores shared memory once, and a tied model's state dict has its head."""
    tied = write_tiny_llama(tmp_path / "tied", tie_word_embeddings=True)
    expected = outputs(tied)
    state = load_file(tied / WEIGHTS)
    assert "lm_head.weight" not in state
    size = sum(tensor.nbytes for tensor in state.values())
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    (tied / WEIGHTS).unlink()
    write_pickles(tied, state)
    assert (tied / "pytorch_model.bin").stat().st_size < size + (1 << 14)
    assert outputs(tied) == expected


def test_older_files_and_strided_tensors(tmp_path, tiny_llama):
    expected = outputs(tiny_llama)
    directory = as_pickle(tiny_llama, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert outputs(directory) == expected
    state = load_file(tiny_llama / WEIGHTS)
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        state[name] = torch.nn.Parameter(state[name].T.contiguous().T)
    write_pickles(directory, state)
    assert not read_pickle(directory / "pytorch_model.bin")[name].is_contiguous()
    assert outputs(directory) == expected


def test_safetensors_win_where_both_exist(tmp_path, tiny_llama):
    both = tmp_path / "both"
    shutil.copytree(tiny_llama, both)
    (both / "pytorch_model.bin").write_bytes(b"damaged")
    write_index(both, {"x": "missing.bin"})
    _core.check_weight_files(str(both), read_pickle=read_pickle)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_data_is_mapped_and_let_go_of_when_taken(tmp_path, tiny_llama):
    directory = as_pickle(tiny_llama, tmp_path / "x", shards=2)
    tensors = [read_pickle(path) for path in sorted(directory.glob("*.bin"))]
    assert maps_of(directory) == 2
    del tensors
    assert maps_of(directory) == 0
    config, seen = (directory / "config.json").read_text(), []
    runner = _core.ModelRunner(
        str(directory),
        config,
        "float32",
        read_pickle=read_pickle,
        progress=lambda *bytes_read: seen.append((*bytes_read, maps_of(directory))),
    )
    assert maps_of(directory) == 0
    assert seen[0][2] == 2
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    assert runner.weight_bytes == _core.ModelRunner(str(tiny_llama), config, "float32").weight_bytes
    before, count = runner.weight_bytes, len(seen)
    runner.unload_weights()
    runner.load_weights(lambda *bytes_read: seen.append(bytes_read), read_pickle=read_pickle)
    assert runner.weight_bytes == before
    assert len(seen) == 2 * count


def maps_of(directory: Path) -> int:
    """Return how many files of the directory are mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split()[-1] for line in lines if f"{directory}/" in line})


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(tmp_path, refusal, zipped):
    mark = tmp_path / "ran"
    state = {"a": torch.ones(2), "b": Runs(f"touch {mark}")}
    error = refusal(state, _use_new_zipfile_serialization=zipped)
    assert "pytorch_model.bin is refused: it asks for posix.system" in error
    assert "convert the model to safetensors" in error
    assert "weights_only" not in error  # torch's text tells how to run it
    assert not mark.exists()


def test_names_what_is_no_state_dict(refusal):
    assert "must hold a dict of tensors by name but holds a list" in refusal([torch.ones(2)])
    assert "but 'model' is a dict" in refusal({"model": {"a": torch.ones(2)}})
    assert "but 'step' is an int" in refusal({"a": torch.ones(2), "step": 3})
    assert "but 7 is a Tensor" in refusal({7: torch.ones(2)})


@pytest.mark.filterwarnings("ignore")
def test_names_tensors_that_are_not_supported(refusal):
    quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    for tensor, reason in (
        (quantised, "but is quantized"),
        (torch.eye(3).to_sparse(), "but is sparse_coo"),
        (torch.ones(3, device="meta"), "its device is meta"),
        (torch.ones(3).to(torch.float8_e4m3fn), "but got float8_e4m3fn"),
        (torch.ones(3, dtype=torch.complex128), "but got complex128"),
        (torch.ones(3, dtype=torch.complex64), "but is complex64"),
    ):
        error = refusal({"layer.weight": tensor})
        assert "[weights] tensor layer.weight in " in error
        assert "pytorch_model.bin" in error
        assert reason in error


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_names_truncated_files(tmp_path, zipped, keep):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(5000)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    error = error_of(tmp_path)
    assert f"{path} is damaged or not written by torch.save: " in error


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(500), b"\x80\x02N.", b"text", bytes(99)])
def test_names_files_of_something_else(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin" in error_of(tmp_path)


def test_flipped_bytes_are_refused_or_change_values_only(tmp_path):
    """No crash and no error without the file's name, wherever a byte is wrong."""
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(40), "b": torch.ones(3, 2).T}, path)
    data = path.read_bytes()
    for position in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        error = ""
        try:
            for tensor in read_pickle(path).values():
                tensor.clone()
        except ValueError as caught:
            error = str(caught)
        assert not error or str(path) in error


def test_names_what_is_wrong_with_an_index(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"a": torch.ones(2)}, tmp_path.parent / "outside.bin")
    for name in ("../outside.bin", str(tmp_path.parent / "outside.bin"), ".."):
        write_index(tmp_path, {"a": name})
        assert "is not the name of a file beside it" in error_of(tmp_path)
    write_index(tmp_path, {"a": "missing.bin"})
    assert "missing.bin: it is not there" in error_of(tmp_path)
    write_index(tmp_path, {"a": "one.bin", "b": "one.bin"})
    assert "places tensor b in one.bin, which lacks it" in error_of(tmp_path)


def test_the_core_alone_says_what_it_needs(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin needs torch to be read"):
        _core.check_weight_files(str(tmp_path))


@pytest.mark.parametrize("options", [Options(), Options(q_bits=4, q_group_size=32)])
def test_converts_like_the_safetensors_copy(tmp_path, tiny_llama, options):
    source = as_safetensors(tiny_llama, tmp_path / "safetensors", torch.bfloat16)
    expected = convert(source, tmp_path / "expected", options)
    sharded = as_pickle(tiny_llama, tmp_path / "pickle", torch.bfloat16, shards=2)
    copy = convert(sharded, tmp_path / "copy", options)
    assert not list(copy.glob("*.bin*"))
    left, right = (mx.load(str(directory / WEIGHTS)) for directory in (expected, copy))
    assert left.keys() == right.keys()
    assert all(mx.array_equal(left[name], right[name]) for name in left)
    assert all(left[name].dtype == right[name].dtype for name in left)


def test_convert_refuses_code(tmp_path, tiny_llama, capsys):
    source = as_pickle(tiny_llama, tmp_path / "x")
    torch.save({"a": Runs("true")}, source / "pytorch_model.bin")
    assert cli.main(["convert", str(source), str(tmp_path / "copy")]) == 1
    assert "asks for posix.system" in capsys.readouterr().err
