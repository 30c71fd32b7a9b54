# SPDX-License-Identifier: Apache-2.0
"""Set up the checkout's .venv: `setup_env.py serve` for serving, `setup_env.py dev` for all.

Every step leaves a key (a hash of what it depends on) in .venv/vllm_metal_setup.json, so a
second run does only what changed, and an interrupted one resumes. Two runs at once wait for
each other. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import preflight
import uv_tool
import vllm_source
from checkout import (
    BUILD,
    CACHE,
    REQUIREMENTS,
    ROOT,
    VENV,
    VENV_PYTHON,
    SetupError,
    exit_code,
    only_one,
    path_with,
    run,
    say,
)
from preflight import Problem

STATE = VENV / "vllm_metal_setup.json"
LOCKS = {"serve": ["serve.txt"], "dev": ["serve.txt", "dev.txt"]}


def digest(files: Iterable[Path], *more: str) -> str:
    state = hashlib.sha256("\0".join(more).encode())
    for path in sorted(files):
        state.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


# --- what was done before ------------------------------------------------------------------


def read_state() -> dict[str, str]:
    try:
        return json.loads(STATE.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write_state(state: dict[str, str]) -> None:
    temporary = STATE.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=2), encoding="utf-8")
    temporary.replace(STATE)


def setup_lock() -> contextlib.AbstractContextManager[None]:
    """One set-up of this checkout at a time."""
    return only_one("setup", "set-up")


# --- steps ---------------------------------------------------------------------------------


def requirements_key(level: str) -> str:
    return digest(REQUIREMENTS / name for name in LOCKS[level])


def vllm_key() -> str:
    return digest([vllm_source.LOCK], repr(vllm_source.PATCHES))


def package_key(level: str) -> str:
    """Everything the extension and the package are made of."""
    names = ["CMakeLists.txt", "VERSION", "pyproject.toml", "LICENSE", "THIRD_PARTY_LICENSES"]
    files = [ROOT / name for name in names]
    for folder in ("src", "python", "cmake"):
        files += [
            path
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return digest(files, level)


def install_googletest() -> None:
    """Install it where that needs no password; elsewhere check_machine names the command."""
    if preflight.has_googletest() or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    say("Installing GoogleTest")
    install = ["apt-get", "install", "-y", *preflight.GOOGLETEST_PACKAGES]
    for command in (["apt-get", "update"], install):
        subprocess.run(command, stdin=subprocess.DEVNULL, check=False)


def create_venv(uv: str, interpreter: str) -> None:
    say(f"Creating .venv with {interpreter}")
    shutil.rmtree(VENV, ignore_errors=True)
    run([uv, "venv", "--quiet", "--python", interpreter, VENV], "Creating .venv")


def install_requirements(uv: str, level: str) -> None:
    say("Installing the locked packages (2.5 GB to download on Linux, less on a Mac)")
    locks = [REQUIREMENTS / name for name in LOCKS[level]]
    run(
        [uv, "pip", "sync", "--python", VENV_PYTHON, "--require-hashes", *locks],
        "Installing the locked packages",
    )


def install_vllm(uv: str, key: str) -> None:
    say(f"Installing vLLM {vllm_source.locked_version()}, built from source without device code")
    install_wheel(uv, vllm_source.build_wheel(key))


def install_package(uv: str, level: str) -> None:
    """Build and install this package; compiler output is kept in build/release."""
    say("Building vllm-metal (C++; minutes the first time, then only what changed)")
    with_tests = "ON" if level == "dev" else "OFF"
    wheels = CACHE / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    environment = {"PATH": path_with(VENV / "bin")}
    if shutil.which("ccache"):
        environment["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", VENV_PYTHON, "-o", wheels,
         "-C", f"build-dir={BUILD}", "-C", f"cmake.define.VLLM_METAL_BUILD_TESTS={with_tests}",
         "-C", "cmake.define.VLLM_METAL_PRECOMPILE_HEADERS=ON", ROOT],
        "Building vllm-metal",
        **environment,
    )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    install_wheel(uv, wheel)


def install_wheel(uv: str, wheel: Path) -> None:
    run(
        [uv, "pip", "install", "--quiet", "--python", VENV_PYTHON, "--no-deps", "--reinstall",
         wheel],
        f"Installing {wheel.name}",
    )  # fmt: skip


# --- the whole -----------------------------------------------------------------------------


def venv_works() -> bool:
    requested = os.environ.get("PYTHON")
    current = preflight.inspect_interpreter(str(VENV_PYTHON))
    if current is None or not preflight.fits(current):
        return False
    wanted = preflight.inspect_interpreter(requested) if requested else None
    return not requested or (wanted is not None and wanted.version == current.version)


def check_machine(uv: str | None, python: str | None, whole: bool, more: list[Problem]) -> str:
    """Raise all problems at once; return the interpreter for .venv ('' leaves it to uv).

    python: the interpreter asked for. whole: nothing is installed yet. more: the caller's.
    """
    interpreter, problems = preflight.choose_interpreter(python)
    problems = [
        *preflight.check_platform(),
        *problems,
        *preflight.check_compiler(),
        *preflight.check_tools(),
        *preflight.check_installer(uv is not None),
        *preflight.check_disk(ROOT, uv_tool.package_cache(uv), whole),
        *more,
    ]
    if problems:
        raise SetupError(preflight.report(problems))
    return interpreter.path if interpreter else ""


def ensure(level: str, more_problems: list[Problem]) -> None:
    """Bring .venv up to date for `level`, or raise SetupError with everything that is missing."""
    with setup_lock():
        works = venv_works()
        state = read_state() if works else {}
        if level == "serve" and state.get("level") == "dev":
            level = "dev"  # what tests need stays; serving needs less
        if level == "dev" and not (BUILD / "build.ninja").exists():
            state.pop("package", None)  # after `make clean`: the C++ tests are gone
        keys = {
            "requirements": requirements_key(level),
            "vllm": vllm_key(),
            "package": package_key(level),
        }
        pending = [step for step, key in keys.items() if state.get(step) != key]
        if pending:
            # A package whose copying was interrupted looks installed: begin again, from uv's cache.
            new_venv = not works or "installing" in state
            uv = prepare(level, new_venv, works, more_problems)
            install(uv, level, state, keys, pending)
            say("Set-up is complete.")
        elif more_problems:
            raise SetupError(preflight.report(more_problems))


def prepare(level: str, new_venv: bool, works: bool, more_problems: list[Problem]) -> str:
    """Check the machine, then make sure of uv and an environment; return uv."""
    if level == "dev":
        install_googletest()
        more_problems = [*more_problems, *preflight.check_googletest()]
    uv = uv_tool.find_uv()
    python = os.environ.get("PYTHON") if new_venv else str(VENV_PYTHON)
    interpreter = check_machine(uv, python, not works, more_problems)
    uv = uv or uv_tool.ensure_uv()
    if new_venv:
        create_venv(uv, interpreter or uv_tool.managed_python(uv))
    return uv


def install(
    uv: str, level: str, state: dict[str, str], keys: dict[str, str], pending: list[str]
) -> None:
    """Do the pending steps in order, and record each that is done."""
    if "requirements" in pending:
        write_state({"installing": "requirements"})  # sync removes vLLM and this package
        install_requirements(uv, level)
        state, pending = {}, list(keys)
    state = {**state, "level": level, "requirements": keys["requirements"]}
    write_state(state)
    if "vllm" in pending:
        install_vllm(uv, keys["vllm"])
        state["vllm"] = keys["vllm"]
        write_state(state)
    if "package" in pending:
        install_package(uv, level)
        state["package"] = keys["package"]
        write_state(state)


def main() -> int:
    level = sys.argv[1] if len(sys.argv) == 2 else ""
    if level not in LOCKS:
        print(f"usage: {sys.argv[0]} {'|'.join(LOCKS)}", file=sys.stderr)
        return 2
    return exit_code(lambda: ensure(level, more_problems=[]))


if __name__ == "__main__":
    sys.exit(main())
