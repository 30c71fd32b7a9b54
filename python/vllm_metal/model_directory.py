# SPDX-License-Identifier: Apache-2.0
"""Model directories that we write: in one piece or not at all, and verifiable later.

A directory is filled beside its place and renamed into it. Its manifest lists the checksum of
every file and of the file it was made from.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_metal.json_file import read_json

MANIFEST = "vllm_metal.json"
# Raised when what is written changes, so that directories of older versions are made anew.
_FORMAT = 1


class ModelDirectoryError(ValueError):
    """A directory is not what its manifest says, or not ours to replace."""


@dataclass(frozen=True)
class SourceFile:
    """The file that a model directory is made from."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        """Describe the file at `path`."""
        return cls(path.name, path.stat().st_size, sha256_of(path))


def cache_directory() -> Path:
    """Return the user's cache folder for this package, which need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not Path(base).is_absolute():  # the XDG specification has relative ones ignored
        base = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return Path(base).expanduser() / "vllm-metal"


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free_disk(directory: Path, needed: int) -> None:
    """Raise OSError when less than `needed` bytes are free where `directory` is or will be."""
    existing = directory
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed >> 20} MiB are needed but {free >> 20} MiB free", str(existing)
        )


def write_manifest(directory: Path, source: SourceFile, version: str) -> None:
    """List what `directory` holds now and our version. The last thing to write into it."""
    files = {
        path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(directory.iterdir())
    }
    manifest = {
        "format": _FORMAT,
        "written_by": f"vllm-metal {version}",
        "source": asdict(source),
        "files": files,
    }
    write_json(directory / MANIFEST, manifest)


def write_json(path: Path, value: Any) -> None:
    """Write `value` for people to read."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def verify_model_dir(directory: Path) -> SourceFile:
    """Check every file that we wrote and return what the directory was made from.

    ModelDirectoryError names the file that is missing or was changed.
    """
    source, files = _read_manifest(directory)
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ModelDirectoryError(f"{path} is missing.")
        size = path.stat().st_size
        if size != expected["size"]:
            raise ModelDirectoryError(f"{path} has {size} bytes instead of {expected['size']}.")
        if sha256_of(path) != expected["sha256"]:
            raise ModelDirectoryError(f"{path} was changed: its checksum differs.")
    return source


def is_current(directory: Path, source: SourceFile) -> bool:
    """Whether `directory` is intact and was made from `source`, whatever that was called."""
    try:
        return verify_model_dir(directory).sha256 == source.sha256
    except ModelDirectoryError:
        return False


def check_replaceable(directory: Path, source: SourceFile, force: bool) -> None:
    """Raise ModelDirectoryError unless `directory` may be replaced by one made from `source`.

    It may when it is absent, empty, or ours: a damaged one of the same source always, one of
    another source with `force`. A directory that we did not write is never replaced.
    """
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return
    try:
        made_from = SourceFile(**read_json(directory / MANIFEST)["source"])
    except (OSError, ValueError, TypeError, KeyError):
        raise ModelDirectoryError(
            f"{directory} exists and was not written by vllm-metal; it is left as it is. "
            "Name another directory."
        ) from None
    if made_from.sha256 != source.sha256 and not force:
        raise ModelDirectoryError(
            f"{directory} exists and was made from another file, {made_from.name}. "
            "Use --force to replace it, or name another directory."
        )


@contextlib.contextmanager
def filled_in_place(target: Path, source: SourceFile, force: bool) -> Iterator[Path]:
    """Give a new directory to fill; it becomes `target`, replacing it, when the block ends.

    Leaves nothing behind and `target` as it was when the block raises or is interrupted. Others may
    have made `target` meanwhile: ModelDirectoryError says that it must not be replaced, see
    check_replaceable. An OSError names a file: that of a full disk does not by itself.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # Imports into one folder take turns: what another left there is then abandoned for certain.
    lock = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_abandoned(target)
        check_replaceable(target, source, force)  # by another run, whose lock was waited for
        partial = _new_directory(target, ".partial")
        try:
            yield partial
            partial.chmod(0o755)
            _sync(partial)
            check_replaceable(target, source, force)
            _move(partial, target)
        except OSError as error:
            if error.filename is None:
                raise OSError(error.errno, error.strerror, str(target)) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _read_manifest(directory: Path) -> tuple[SourceFile, dict[str, dict[str, Any]]]:
    path = directory / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["format"] != _FORMAT:
            raise ModelDirectoryError(f"{path} is of another version of vllm-metal.")
        files = {str(name): dict(entry) for name, entry in manifest["files"].items()}
        if any("size" not in entry or "sha256" not in entry for entry in files.values()):
            raise KeyError("files")
        if any(not is_file_name(name) for name in files):
            raise KeyError("files")
        return SourceFile(**manifest["source"]), files
    except OSError as error:
        raise ModelDirectoryError(f"{path} cannot be read: {error.strerror}.") from error
    except ModelDirectoryError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelDirectoryError(f"{path} is damaged.") from error


def is_file_name(name: str) -> bool:
    """Whether `name` is of a file in a folder, and not of one elsewhere."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _new_directory(target: Path, suffix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=suffix, dir=target.parent))


def _remove_abandoned(target: Path) -> None:
    """Remove what killed runs left, and put back what one had put aside.

    The caller holds the lock of the folder.
    """
    for path in target.parent.glob(f".{_escaped(target.name)}.*.old"):
        if path.is_dir() and not os.path.lexists(target) and any(path.iterdir()):
            path.rename(target)
    for suffix in ("partial", "old"):
        for path in target.parent.glob(f".{_escaped(target.name)}.*.{suffix}"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync(directory: Path) -> None:
    for path in [*directory.iterdir(), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _move(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what was there is put aside first and put back on failure."""
    aside = None
    try:
        if target.is_dir() and any(target.iterdir()):
            aside = _new_directory(target, ".old")
            target.rename(aside)  # replaces the empty directory
        partial.rename(target)
    except BaseException:
        if aside and not os.path.lexists(target):
            aside.rename(target)
        raise
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)
