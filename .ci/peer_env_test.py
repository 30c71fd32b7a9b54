# SPDX-License-Identifier: Apache-2.0
"""Environments beside .venv are made once, made anew when their lock changes, and never half."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import checkout
import environments
import peer_env
import setup_env
import uv_tool


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """A checkout whose commands are recorded instead of run; `uv venv` makes a Python."""
    for module in (checkout, peer_env, setup_env):
        monkeypatch.setattr(module, "CACHE", tmp_path / ".cache")
        monkeypatch.setattr(module, "REQUIREMENTS", tmp_path / "requirements")
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(uv_tool, "find_uv", lambda: "uv")
    monkeypatch.setattr(peer_env, "choose_python", lambda uv: "python3")
    (tmp_path / "requirements").mkdir()
    for name in peer_env.PEERS:
        (tmp_path / "requirements" / f"{name}.txt").write_text(name)
    done: list[list[str]] = []

    def run(command, what):
        done.append([str(word) for word in command])
        if command[1] == "venv":
            python = command[-1] / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

    monkeypatch.setattr(environments, "run", run)
    return done


@pytest.mark.parametrize("name", peer_env.PEERS)
def test_made_once_from_hashed_locks(commands, name, tmp_path):
    assert peer_env.interpreter_of(name) is None
    python = peer_env.ensure(name)
    assert python == tmp_path / ".cache" / "envs" / name / "bin" / "python"
    assert peer_env.interpreter_of(name) == python
    (_, sync) = commands
    assert "--require-hashes" in sync
    assert sync[-1] == str(tmp_path / "requirements" / f"{name}.txt")
    peer_env.ensure(name)
    assert len(commands) == 2


def test_llama_cpp_is_compiled_and_nothing_else(commands):
    peer_env.ensure("llama-cpp")
    sync = commands[-1]
    assert sync[sync.index("--no-binary") + 1] == "llama-cpp-python"
    assert sync[sync.index("--only-binary") + 1] == ":all:"
    assert "cmake.args=-DGGML_NATIVE=ON" in sync


def test_made_anew_when_the_lock_changes(commands):
    peer_env.ensure("llama-cpp")
    (peer_env.REQUIREMENTS / "llama-cpp.txt").write_text("newer")
    assert peer_env.interpreter_of("llama-cpp") is None
    peer_env.ensure("llama-cpp")
    assert len(commands) == 4


def test_what_was_interrupted_does_not_count(commands, monkeypatch):
    peer_env.ensure("llama-cpp")
    (peer_env.REQUIREMENTS / "llama-cpp.txt").write_text("newer")
    working = environments.run

    def interrupted(command, what):
        if command[1] == "pip":
            raise checkout.SetupError("interrupted")
        working(command, what)

    monkeypatch.setattr(environments, "run", interrupted)
    with pytest.raises(checkout.SetupError):
        peer_env.ensure("llama-cpp")
    (peer_env.REQUIREMENTS / "llama-cpp.txt").write_text("llama-cpp")  # as it was at first
    assert peer_env.interpreter_of("llama-cpp") is None


def test_unknown_names_are_refused(commands, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["peer_env.py", "llama"])
    assert peer_env.main() == 2
    assert "llama-cpp|torch-backend" in capsys.readouterr().err
