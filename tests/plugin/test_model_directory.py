# SPDX-License-Identifier: Apache-2.0
"""A model directory appears in one piece or not at all, and damage to it is found."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as GgmlType
from vllm_metal import cli
from vllm_metal.import_gguf import import_gguf
from vllm_metal.model_directory import (
    MANIFEST,
    ModelDirectoryError,
    cache_directory,
    sha256_of,
    verify_model_dir,
)

from tests.plugin.tiny_gguf import write_tiny_gguf


@pytest.fixture
def tiny(tmp_path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def other(tmp_path) -> Path:
    return write_tiny_gguf(tmp_path / "other.gguf", linear=GgmlType.Q4_0)


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "models" / "tiny"


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_holds_a_verifiable_model_and_nothing_else(tiny, target):
    assert import_gguf(tiny, target) == target
    assert set(contents(target)) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        MANIFEST,
    }
    source = verify_model_dir(target)
    assert (source.name, source.size, source.sha256) == (
        "tiny.gguf",
        tiny.stat().st_size,
        sha256_of(tiny),
    )
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_importing_again_changes_nothing(tiny, target):
    import_gguf(tiny, target)
    before = target.stat().st_ino
    renamed = tiny.rename(tiny.with_name("renamed.gguf"))
    assert import_gguf(renamed, target) == target
    assert target.stat().st_ino == before


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["missing", "changed", "shorter", "emptied"])
def test_damage_is_found_and_mended(tiny, target, name, damage):
    import_gguf(tiny, target)
    before = contents(target)
    path = target / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content[:-1] if damage == "shorter" else b"")
    with pytest.raises(ModelDirectoryError, match=str(path)):
        verify_model_dir(target)
    import_gguf(tiny, target)
    assert contents(target) == before


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"format": 1, "files": {}}'])
def test_without_a_manifest_a_directory_is_not_ours(tiny, target, text):
    import_gguf(tiny, target)
    (target / MANIFEST).unlink()
    if text is not None:
        (target / MANIFEST).write_text(text)
    before = contents(target)
    with pytest.raises(ModelDirectoryError, match=MANIFEST):
        verify_model_dir(target)
    with pytest.raises(ModelDirectoryError, match="was not written by vllm-metal"):
        import_gguf(tiny, target, force=True)
    assert contents(target) == before


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b", "..", "", "a\0b"])
def test_a_manifest_that_names_other_places_is_damaged(tiny, target, name):
    import_gguf(tiny, target)
    (target.parent / "outside").write_text("content")
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["files"][name] = {"size": 7, "sha256": sha256_of(target.parent / "outside")}
    (target / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelDirectoryError, match="is damaged"):
        verify_model_dir(target)


def test_a_manifest_that_is_no_small_file_is_not_read(tiny, target):
    import_gguf(tiny, target)
    manifest = target / MANIFEST

    def refused():
        with pytest.raises(ModelDirectoryError, match=MANIFEST):
            verify_model_dir(target)
        with pytest.raises(ModelDirectoryError, match="was not written by vllm-metal"):
            import_gguf(tiny, target, force=True)

    manifest.write_text("[" * 1_000_000)
    refused()
    os.truncate(manifest, 100_000_000_000)
    refused()
    manifest.unlink()
    os.mkfifo(manifest)
    refused()
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    refused()


@pytest.mark.parametrize("name", [".gguf", "..gguf", "...gguf"])
def test_a_file_that_names_no_model_needs_a_directory(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="names no model"):
        import_gguf(tiny.rename(tmp_path / name))
    assert not (tmp_path / "cache").exists()


def test_another_source_needs_force(tiny, other, target):
    import_gguf(tiny, target)
    before = contents(target)
    with pytest.raises(ModelDirectoryError, match=r"made from another file, tiny\.gguf.*--force"):
        import_gguf(other, target)
    assert contents(target) == before
    import_gguf(other, target, force=True)
    assert verify_model_dir(target).name == "other.gguf"
    assert list(target.parent.iterdir()) == [target]


def test_a_foreign_directory_is_never_replaced(tiny, target):
    target.mkdir(parents=True)
    (target / "precious.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ModelDirectoryError, match="was not written by vllm-metal"):
            import_gguf(tiny, target, force=force)
    assert contents(target) == {"precious.txt": b"mine"}
    file = target.parent / "file"
    file.write_text("mine")
    with pytest.raises(ModelDirectoryError, match="was not written by vllm-metal"):
        import_gguf(tiny, file, force=True)
    assert file.read_text() == "mine"


def test_an_empty_directory_is_filled(tiny, target):
    target.mkdir(parents=True)
    import_gguf(tiny, target)
    verify_model_dir(target)


class StopError(Exception):
    pass


def stop(*_: object) -> None:
    raise StopError


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_leaves_everything_as_it_was(tiny, other, target, existing):
    if existing:
        import_gguf(other, target)
    before = contents(target) if existing else None
    with pytest.raises(StopError):
        import_gguf(tiny, target, force=True, progress=stop)
    if existing:
        assert contents(target) == before
    assert list(target.parent.iterdir()) == ([target] if existing else [])


def test_ctrl_c_leaves_nothing(tiny, target):
    def interrupt(done: int, total: int) -> None:
        if done < total:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        import_gguf(tiny, target, progress=interrupt)
    assert list(target.parent.iterdir()) == []


def test_a_failing_rename_restores_the_old_directory(tiny, other, target, monkeypatch):
    import_gguf(other, target)
    before = contents(target)
    rename = Path.rename

    def refuse(self: Path, to: Path) -> Path:
        if to == target and (self / MANIFEST).is_file() and contents(self) != before:
            raise OSError(errno.EIO, "refused")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        import_gguf(tiny, target, force=True)
    assert contents(target) == before
    assert list(target.parent.iterdir()) == [target]


def test_a_full_disk_is_found_first(tiny, target, monkeypatch):
    usage = shutil.disk_usage(tiny.parent)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="are needed but 1 MiB free"):
        import_gguf(tiny, target)
    assert not target.parent.exists()


def test_what_a_killed_run_left_is_removed(tiny, target):
    abandoned = target.parent / ".tiny.abc.partial"
    abandoned.mkdir(parents=True)
    (abandoned / "model.safetensors").write_text("half")
    import_gguf(tiny, target)
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_run_put_aside_is_put_back(tiny, other, target):
    import_gguf(other, target)
    before = contents(target)
    target.rename(target.parent / ".tiny.abc.old")  # killed between the two renames
    with pytest.raises(StopError):
        import_gguf(tiny, target, force=True, progress=stop)
    assert contents(target) == before
    (target.parent / ".tiny.abc.old").mkdir()  # killed after them
    import_gguf(tiny, target, force=True)
    assert contents(target) != before
    assert list(target.parent.iterdir()) == [target]


def test_a_directory_that_others_made_meanwhile_is_left(tiny, target):
    def appear(done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "notes.txt").write_text("mine")

    with pytest.raises(ModelDirectoryError, match="was not written by vllm-metal"):
        import_gguf(tiny, target, progress=appear)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    assert list(target.parent.iterdir()) == [target]


def test_imports_at_the_same_time_agree(tiny, target):
    command = [sys.executable, "-m", "vllm_metal.cli", "import-gguf", str(tiny), str(target)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert outputs == [f"{target}\n"] * 3
    verify_model_dir(target)
    assert list(target.parent.iterdir()) == [target]


def test_manifest_of_another_version_is_not_trusted(tiny, target):
    import_gguf(tiny, target)
    manifest = json.loads((target / MANIFEST).read_text())
    (target / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(ModelDirectoryError, match="of another version"):
        verify_model_dir(target)
    import_gguf(tiny, target)
    verify_model_dir(target)


def test_cache_folder_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "vllm-metal"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setattr(sys, "platform", "linux")
        assert cache_directory() == tmp_path / ".cache" / "vllm-metal"
        monkeypatch.setattr(sys, "platform", "darwin")
        assert cache_directory() == tmp_path / "Library" / "Caches" / "vllm-metal"


def test_command_writes_into_the_cache_folder(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.main(["import-gguf", str(tiny)]) == 0
    directory = tmp_path / "cache" / "vllm-metal" / "models" / "tiny"
    assert capsys.readouterr().out == f"{directory}\n"
    verify_model_dir(directory)
