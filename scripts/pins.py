# SPDX-License-Identifier: Apache-2.0
"""The exact versions of MLX and vLLM that this package is made for, which stand in several files.

  pins.py check [WHEEL…]      fail unless all places agree, and what the wheels require with them
  pins.py newest NAME         print the newest release of mlx or vllm
  pins.py set NAME VERSION    write a version into all places; `make lock` comes after it

`newest` and `set vllm` ask the package index through uv. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import uv_tool
from checkout import REQUIREMENTS, ROOT, SetupError, exit_code

# Files, and what stands before the version in them.
PLACES = {
    "mlx": {
        "README.md": r"mlx-cuda-13==",
        "cmake/FindMLXWheel.cmake": r'VLLM_METAL_MLX_VERSION "',
        "docs/dependencies.md": r"^\| mlx \| ",
        "pyproject.toml": r'"mlx(?:\[\w+\])?==',
        "requirements/serve.in": r"^mlx(?:\[\w+\])?==",
    },
    "vllm": {
        "docs/dependencies.md": r"^\| vLLM \| ",
        "requirements/vllm.txt": r"^vllm==",
    },
}
LOCKS = {"mlx": ("requirements/serve.txt",), "vllm": ()}
VERSION = r"(\d+(?:\.\d+)+)"


def pattern(before: str) -> re.Pattern[str]:
    return re.compile(f"({before}){VERSION}", re.MULTILINE)


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def found(name: str) -> dict[str, set[str]]:
    """Versions of a package by the file that names them."""
    versions = {
        path: {match[2] for match in pattern(before).finditer(read(path))}
        for path, before in PLACES[name].items()
    }
    for path in LOCKS[name]:
        versions[path] = {match[2] for match in pattern(f"^{name}==").finditer(read(path))}
    return versions


def required_by(wheel: Path) -> set[str]:
    """Versions of MLX in the requirements of a built wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    required = pattern(r"^Requires-Dist: mlx(?:\[\w+\])?==")
    return {match[2] for match in required.finditer(text)}


def check(wheels: list[Path]) -> None:
    for name in PLACES:
        places = found(name)
        if name == "mlx":
            places |= {wheel.name: required_by(wheel) for wheel in wheels}
        if len(set.union(*places.values())) != 1 or not all(places.values()):
            lines = (f"  {path}: {', '.join(sorted(v)) or 'none'}" for path, v in places.items())
            raise SetupError(f"The versions of {name} differ:\n" + "\n".join(lines))
        print(f"{name} {places.popitem()[1].pop()}")


def resolve(requirement: str, *options: str) -> str:
    """What uv makes of one requirement, without its dependencies."""
    command = [
        uv_tool.ensure_uv(),
        "pip",
        "compile",
        "-",
        "--quiet",
        "--no-deps",
        "--no-header",
        "--no-annotate",
    ]
    result = subprocess.run(
        [*command, *options], input=requirement, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SetupError(f"{requirement} was not found: {result.stderr.strip()}")
    return result.stdout


def newest(name: str) -> str:
    match = pattern(f"^{name}==").search(resolve(name, "--upgrade"))
    if match is None:
        raise SetupError(f"No release of {name} was found.")
    return match[2]


def set_version(name: str, version: str) -> None:
    if not re.fullmatch(VERSION, version):
        raise SetupError(f"{version} is not a version such as 0.33.0.")
    for path, before in PLACES[name].items():
        text, count = pattern(before).subn(rf"\g<1>{version}", read(path))
        if count == 0:
            raise SetupError(f"{path} names no version of {name}.")
        (ROOT / path).write_text(text, encoding="utf-8")
    if name == "vllm":
        lock = REQUIREMENTS / "vllm.txt"
        comment = [line for line in read("requirements/vllm.txt").splitlines() if line[:1] == "#"]
        hashed = resolve(f"vllm=={version}", "--generate-hashes", "--no-binary", "vllm")
        lock.write_text("\n".join([*comment, hashed]), encoding="utf-8")


def main() -> int:
    command, arguments = (sys.argv[1:2] or [""])[0], sys.argv[2:]
    named = bool(arguments) and arguments[0] in PLACES
    if command == "check":
        return exit_code(lambda: check([Path(wheel) for wheel in arguments]))
    if command == "newest" and named and len(arguments) == 1:
        return exit_code(lambda: print(newest(arguments[0])))
    if command == "set" and named and len(arguments) == 2:
        return exit_code(lambda: set_version(*arguments))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
