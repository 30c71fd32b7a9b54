# SPDX-License-Identifier: Apache-2.0
"""`make lint` runs every check on the whole tree; names choose some: `lint.py ruff mypy`.

`make format` (--format) formats the sources; `make stubs` (--stubs) writes the extension's stub.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from checkout import BUILD, CACHE, ROOT, path_with

BIN = Path(sys.executable).parent
STUB = ROOT / "python" / "vllm_metal" / "_core.pyi"
TIDY_CACHE = CACHE / "clang-tidy"


def tracked(*patterns: str) -> list[str]:
    """Files of the checkout that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted({name for name in names.splitlines() if (ROOT / name).is_file()})


def passes(*command: object) -> bool:
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, check=False).returncode == 0


def clang_format(fix: bool = False) -> bool:
    mode = ["-i"] if fix else ["--dry-run", "-Werror"]
    return passes(BIN / "clang-format", *mode, *tracked("*.cpp", "*.h", "*.metal"))


def ruff(fix: bool = False) -> bool:
    if fix:
        passes(BIN / "ruff", "check", "--quiet", "--fix")
        return passes(BIN / "ruff", "format")
    checked = passes(BIN / "ruff", "check")
    return passes(BIN / "ruff", "format", "--check") and checked


def mypy() -> bool:
    return passes(BIN / "mypy")


def passes_if_installed(name: str, *arguments: str) -> bool:
    program = shutil.which(name, path=path_with(BIN))
    if program is None:
        print(f"{name} is not installed: skipped")
        return True
    return passes(program, *arguments)


def shellcheck() -> bool:
    return passes_if_installed("shellcheck", *tracked("*.sh", ".ci/run"))


def workflows() -> bool:
    """actionlint's package downloads the program when it is installed: CI does that, `make` not."""
    return passes_if_installed("actionlint")


def layers() -> bool:
    return passes(sys.executable, ".ci/check_layers.py")


def spdx() -> bool:
    return passes(sys.executable, ".ci/check_spdx.py", *tracked())


def documents() -> bool:
    return passes(sys.executable, ".ci/generate_supported_models.py", "--check")


def msl() -> bool:
    return passes(sys.executable, "scripts/check_msl.py")


def write_stub(path: Path) -> bool:
    patterns = ROOT / "python" / "bindings" / "stub_patterns.txt"
    options = ["-q", "-m", "vllm_metal._core", "-p", patterns, "-o", path]
    return passes(sys.executable, "-m", "nanobind.stubgen", *options)


def stubs() -> bool:
    """The checked-in stub of the extension says what the extension has."""
    with tempfile.TemporaryDirectory() as folder:
        generated = Path(folder) / "_core.pyi"
        if not write_stub(generated):
            return False
        want = generated.read_text(encoding="utf-8").splitlines()
    have = STUB.read_text(encoding="utf-8").splitlines() if STUB.exists() else []
    name = str(STUB.relative_to(ROOT))
    difference = list(difflib.unified_diff(have, want, name, "extension (make stubs)", lineterm=""))
    print("\n".join(difference) or f"{name} is what the extension has")
    return not difference


def clang_tidy() -> bool:
    """Every source of the library, but for those that passed before and see the same headers."""
    headers = hashlib.sha256()
    for name in [".clang-tidy", "requirements/dev.txt", *tracked("src/*.h", "python/bindings/*.h")]:
        headers.update((ROOT / name).read_bytes())
    compiled = (BUILD / "compile_commands.json").read_text(encoding="utf-8")
    names = [name for name in tracked("src/*.cpp", "python/bindings/*.cpp") if name in compiled]
    TIDY_CACHE.mkdir(parents=True, exist_ok=True)

    def check(name: str) -> bool:
        state = headers.copy()
        state.update(name.encode() + (ROOT / name).read_bytes())
        passed_before = TIDY_CACHE / state.hexdigest()
        if passed_before.exists():
            return True
        command = [str(BIN / "clang-tidy"), "--quiet", "-p", str(BUILD), name]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            print(result.stdout or result.stderr, flush=True)
            return False
        passed_before.touch()
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failures = list(pool.map(check, names)).count(False)
    print(f"clang-tidy: {len(names)} files, {failures} with findings")
    return failures == 0


CHECKS: dict[str, Callable[[], bool]] = {
    "layers": layers,
    "spdx": spdx,
    "ruff": ruff,
    "clang-format": clang_format,
    "shellcheck": shellcheck,
    "workflows": workflows,
    "documents": documents,
    "msl": msl,
    "stubs": stubs,
    "mypy": mypy,
    "clang-tidy": clang_tidy,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", action="store_true", help="format the sources instead")
    parser.add_argument("--stubs", action="store_true", help="write _core.pyi instead")
    parser.add_argument("checks", nargs="*", help=f"of {', '.join(CHECKS)}; default: all")
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - set(CHECKS):
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    if arguments.stubs:
        return 0 if write_stub(STUB) else 1
    if arguments.format:
        return 0 if clang_format(fix=True) and ruff(fix=True) else 1
    failed = []
    for name in arguments.checks or CHECKS:
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        if not CHECKS[name]():
            failed.append(name)
        print(f"    {time.monotonic() - started:.1f} s", flush=True)
    print(f"lint: {'FAILED: ' + ', '.join(failed) if failed else 'all checks passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
