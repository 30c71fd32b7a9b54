# SPDX-License-Identifier: Apache-2.0
"""Complete a folder of wheels to the files of a release: `release_files.py OWNER/NAME FOLDER`.

Adds the lock files, an install.sh that knows its repository and a Homebrew formula, checks that all
that install.sh looks for is there, and writes SHA256SUMS. Standard library only.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from pathlib import Path

from checkout import REQUIREMENTS, ROOT, SetupError, exit_code

PYTHONS = ("cp311-cp311", "cp312-abi3")  # the second serves 3.12 and all later ones
PLATFORMS = ("macosx_14_0_arm64", "manylinux_*_x86_64", "manylinux_*_aarch64")
LOCKS = ("serve.txt", "torch-backend.txt")
SUMS = "SHA256SUMS"


def expected(version: str) -> list[str]:
    """Patterns of which each must fit a file: what install.sh falls back to source without."""
    return [
        *(f"vllm_metal-{version}-{python}-{on}.whl" for python in PYTHONS for on in PLATFORMS),
        f"vllm_metal-{version}.tar.gz",
        "vllm-*+empty-py3-none-any.whl",
    ]


def installer(repository: str) -> str:
    """install.sh with the repository filled in."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise SetupError(f"{repository} is not OWNER/NAME.")
    empty = "REPOSITORY=${VLLM_METAL_REPOSITORY:-}\n"
    text = (ROOT / "install.sh").read_text(encoding="utf-8")
    if text.count(empty) != 1:
        raise SetupError(f"install.sh has {empty.strip()!r} {text.count(empty)} times, not once.")
    return text.replace(empty, f"REPOSITORY=${{VLLM_METAL_REPOSITORY:-{repository}}}\n")


def formula(repository: str, version: str, script: str) -> str:
    """The Homebrew formula with the release filled in."""
    text = (ROOT / "packaging" / "homebrew" / "vllm-metal.rb").read_text(encoding="utf-8")
    sha256 = hashlib.sha256(script.encode()).hexdigest()
    for name, value in {"REPOSITORY": repository, "VERSION": version, "SHA256": sha256}.items():
        text = text.replace(f"@{name}@", value)
    return text


def complete(repository: str, folder: Path) -> None:
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    missing = [name for name in expected(version) if not any(folder.glob(name))]
    if missing:
        raise SetupError(f"{folder} lacks {', '.join(missing)}.")
    for name in LOCKS:
        shutil.copy(REQUIREMENTS / name, folder)
    script = installer(repository)
    (folder / "install.sh").write_text(script, encoding="utf-8")
    rb = formula(repository, version, script)
    (folder / "vllm-metal.rb").write_text(rb, encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    print("".join(lines), end="")


def main() -> int:
    if len(sys.argv) != 3:
        print(f"usage: {sys.argv[0]} OWNER/NAME FOLDER", file=sys.stderr)
        return 2
    return exit_code(lambda: complete(sys.argv[1], Path(sys.argv[2])))


if __name__ == "__main__":
    sys.exit(main())
