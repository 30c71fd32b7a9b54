# SPDX-License-Identifier: Apache-2.0
"""vLLM as a pure-Python wheel, built from its locked source distribution.

Its wheels for Linux hold CUDA code and pull in CUDA packages, and a Mac has none.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from pathlib import Path

from checkout import CACHE, REQUIREMENTS, VENV_PYTHON, SetupError, run

LOCK = REQUIREMENTS / "vllm.txt"

# On a Mac vLLM's setup.py turns the build without device code ("empty") into one for CPUs, and
# it would compile the optional Rust front end where cargo is found. Both are replaced everywhere,
# so that Linux builds what a Mac builds. Every pattern must occur exactly once.
PATCHES = (
    ('VLLM_TARGET_DEVICE != "cpu"', 'VLLM_TARGET_DEVICE not in ("cpu", "empty")'),
    ("rust_extensions=rust_extensions,", "rust_extensions=[],"),
)


def locked_version() -> str:
    found = re.search(r"^vllm==(\S+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE)
    if not found:
        raise SetupError(f"{LOCK} names no version of vLLM.")
    return found[1]


def fetch(folder: Path, python: Path) -> Path:
    """Download the source distribution, its hash checked against the lock."""
    run(
        [python, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-binary", "vllm", "--require-hashes", "-r", LOCK,
         "-d", folder],
        "Fetching vLLM",
        VLLM_TARGET_DEVICE="empty",
        # pip compares the version in the archive's metadata, which has no "+empty", to this one.
        VLLM_VERSION_OVERRIDE=locked_version(),
    )  # fmt: skip
    (archive,) = folder.glob("vllm-*.tar.gz")
    return archive


def unpack(archive: Path) -> Path:
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(archive.parent, filter="data")
        else:  # Python 3.9 without its later patches
            tar.extractall(archive.parent)
    return archive.with_name(archive.name[: -len(".tar.gz")])


def patch(source: Path) -> None:
    path = source / "setup.py"
    text = path.read_text(encoding="utf-8")
    for old, new in PATCHES:
        if text.count(old) != 1:
            raise SetupError(f"{path} has {old!r} {text.count(old)} times, expected once.")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def build_wheel(key: str, python: Path = VENV_PYTHON, device: str = "empty") -> Path:
    """Return the wheel, kept in .cache/vllm under the key of what it is made from.

    python: of an environment with what is locked in serve.txt. device: "empty" makes a pure-Python
    wheel, "cpu" compiles vLLM's CPU kernels.
    """
    folder = CACHE / "vllm" / key[:12]
    for built in folder.glob("*.whl"):
        return built
    work = CACHE / "vllm" / f"build-{device}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = unpack(fetch(work, python))
    patch(source)
    run(
        [python, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", source, "-w", work],
        "Building vLLM",
        VLLM_TARGET_DEVICE=device,
    )  # fmt: skip
    (wheel,) = work.glob("*.whl")
    folder.mkdir(parents=True, exist_ok=True)
    wheel.replace(folder / wheel.name)
    shutil.rmtree(work)
    return folder / wheel.name
