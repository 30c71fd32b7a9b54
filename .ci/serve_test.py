# SPDX-License-Identifier: Apache-2.0
"""With VLLM_METAL_USE_MLX=0, `make serve` starts vLLM's PyTorch back end on weights it can read."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import checkout
import peer_env
import preflight
import serve
import setup_env

PYTHON = Path("/envs/torch-backend/bin/python")
PACKED = {"quantization": {"bits": 4, "group_size": 32}}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Commands are recorded instead of run, and print what `printed` has for their names."""
    for name in ("MODEL", "PORT", "ARGS", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    monkeypatch.setattr(serve, "CACHE", tmp_path / ".cache")
    monkeypatch.setattr(preflight, "is_mac", lambda: False)
    monkeypatch.setattr(preflight, "check_port", lambda port: [])
    return Steps(monkeypatch)


class Steps:
    def __init__(self, monkeypatch):
        self.done: list[str] = []
        self.problems: list[preflight.Problem] = []
        self.printed: dict[str, str] = {}
        monkeypatch.setattr(setup_env, "ensure", self._set_up)
        monkeypatch.setattr(peer_env, "ensure", self._install)
        monkeypatch.setattr(serve, "last_line_of", self._run)
        monkeypatch.setattr(serve.os, "execve", self._become)

    def _set_up(self, level, problems):
        self.done.append(f"set up {level}")
        self.problems = problems

    def _install(self, name):
        self.done.append(f"install {name}")
        return PYTHON

    def _run(self, command, what):
        words = [word for word in command[1:] if word not in ("-m", "-c", serve.SNAPSHOT)]
        self.done.append(" ".join(words))
        if "convert" in words:
            return words[2]
        return self.printed[self.done[-1]]

    def _become(self, program, command, environment):
        assert program == command[0]
        self.command, self.environment = command, environment

    @property
    def model(self):
        return self.command[self.command.index("--model") + 1]

    @property
    def name(self):
        return self.command[self.command.index("--served-model-name") + 1]


def model_directory(parent, name, config):
    directory = parent / name
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def conversion(directory, copy):
    return f"convert {directory} {copy} --dequantize --dtype bfloat16 --force"


def test_the_default_model_is_dequantised(steps, tmp_path, monkeypatch, capsys):
    directory = model_directory(tmp_path, "default", PACKED)
    steps.printed["vllm_metal.default_model"] = directory
    monkeypatch.setenv("PORT", "8123")
    monkeypatch.setenv("ARGS", "--max-model-len 512")
    serve.serve()
    copy = str(tmp_path / ".cache" / "models" / f"{serve.DEFAULT_NAME}-bfloat16")
    assert steps.done == [
        "set up serve",
        "install torch-backend",
        "vllm_metal.default_model",
        conversion(directory, copy),
    ]
    assert steps.command[:3] == [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"]
    assert (steps.model, steps.name) == (copy, serve.DEFAULT_NAME)
    assert steps.command[steps.command.index("--port") + 1] == "8123"
    assert steps.command[-2:] == ["--max-model-len", "512"]
    assert steps.environment["HF_HUB_OFFLINE"] == "1"
    output = capsys.readouterr().err
    assert "Serving with vLLM's PyTorch back end" in output
    assert f"Serving {serve.DEFAULT_NAME} on http://127.0.0.1:8123/v1" in output


def test_a_plain_directory_is_served_as_it_is(steps, tmp_path, monkeypatch):
    directory = model_directory(tmp_path, "plain", {"model_type": "llama"})
    monkeypatch.setenv("MODEL", directory)
    serve.serve()
    assert steps.done == ["set up serve", "install torch-backend"]
    assert (steps.model, steps.name) == (directory, "plain")


def test_a_gguf_file_is_imported_and_dequantised(steps, tmp_path, monkeypatch):
    file = tmp_path / "tiny.gguf"
    file.touch()
    directory = model_directory(tmp_path, "imported", PACKED)
    steps.printed[f"import-gguf {file}"] = directory
    monkeypatch.setenv("MODEL", str(file))
    serve.serve()
    copy = str(tmp_path / ".cache" / "models" / "tiny-bfloat16")
    assert steps.done[2:] == [f"import-gguf {file}", conversion(directory, copy)]
    assert (steps.model, steps.name) == (copy, "tiny")


def test_a_plain_model_on_the_hub_is_left_to_vllm(steps, tmp_path, monkeypatch):
    steps.printed["org/plain config.json"] = model_directory(tmp_path, "plain", {})
    monkeypatch.setenv("MODEL", "org/plain")
    serve.serve()
    assert (steps.model, steps.name) == ("org/plain", "org/plain")
    assert "HF_HUB_OFFLINE" not in steps.environment


def test_a_packed_model_on_the_hub_is_fetched_and_dequantised(steps, tmp_path, monkeypatch):
    directory = model_directory(tmp_path, "snapshot", PACKED)
    steps.printed |= {"org/packed config.json": directory, "org/packed": directory}
    monkeypatch.setenv("MODEL", "org/packed")
    serve.serve()
    copy = str(tmp_path / ".cache" / "models" / "org--packed-bfloat16")
    assert steps.done[2:] == ["org/packed config.json", "org/packed", conversion(directory, copy)]
    assert (steps.model, steps.name) == (copy, "org/packed")
    assert steps.environment["HF_HUB_OFFLINE"] == "1"


def test_a_broken_config_is_left_to_vllm(steps, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    monkeypatch.setenv("MODEL", str(tmp_path / "broken"))
    serve.serve()
    assert steps.model == str(tmp_path / "broken")


@pytest.mark.parametrize("value", ["0", "false", "No", "OFF"])
def test_its_variables_stay_out_of_the_other_environment(steps, tmp_path, monkeypatch, value):
    monkeypatch.setenv("MODEL", model_directory(tmp_path, "plain", {}))
    monkeypatch.setenv("VLLM_METAL_USE_MLX", value)
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "empty")
    serve.serve()
    assert steps.command[0] == str(PYTHON)
    assert not {"VLLM_METAL_USE_MLX", "VLLM_TARGET_DEVICE"} & set(steps.environment)


@pytest.mark.parametrize("value", [None, "1", "true", "nonsense"])
def test_otherwise_mlx_serves(steps, tmp_path, monkeypatch, value):
    """Nonsense too: the server refuses it by name."""
    monkeypatch.setenv("MODEL", model_directory(tmp_path, "packed", PACKED))
    monkeypatch.delenv("VLLM_METAL_USE_MLX")
    if value is not None:
        monkeypatch.setenv("VLLM_METAL_USE_MLX", value)
    serve.serve()
    assert steps.done == ["set up serve"]
    assert steps.command[:3] == [
        str(checkout.VENV / "bin" / "vllm"),
        "serve",
        str(tmp_path / "packed"),
    ]
    assert steps.environment.get("VLLM_METAL_USE_MLX") == value


def test_a_mac_is_refused_before_anything_is_installed(steps, tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL", model_directory(tmp_path, "plain", {}))
    monkeypatch.setattr(preflight, "is_mac", lambda: True)
    serve.serve()
    (problem,) = steps.problems
    assert "no package has its CPU kernels for macOS" in problem.what
    assert "unset VLLM_METAL_USE_MLX" in problem.mend
