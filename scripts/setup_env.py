# SPDX-License-Identifier: Apache-2.0
"""Set up the checkout's .venv: `setup_env.py serve` for serving, `setup_env.py dev` for all.

Every step leaves a key (a hash of what it depends on) in .venv/vllm_metal_setup.json, so a
second run does only what changed, and an interrupted one resumes. Two runs at once wait for
each other. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import preflight
from preflight import Problem

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
CACHE = ROOT / ".cache"
BUILD = ROOT / "build" / "release"
REQUIREMENTS = ROOT / "requirements"
STATE = VENV / "vllm_metal_setup.json"

STARTED = time.monotonic()
LOCKS = {"serve": ["serve.txt"], "dev": ["serve.txt", "dev.txt"]}
OLDEST_UV = (0, 8)

# vLLM's setup.py turns the build without device code ("empty") into one for CPUs on a Mac, and
# it would compile the optional Rust front end where cargo is found. Both are replaced everywhere,
# so that Linux builds what a Mac builds. Every pattern must occur exactly once.
VLLM_PATCHES = (
    ('VLLM_TARGET_DEVICE != "cpu"', 'VLLM_TARGET_DEVICE not in ("cpu", "empty")'),
    ("rust_extensions=rust_extensions,", "rust_extensions=[],"),
)


class SetupError(Exception):
    """A failure whose text is all that the user needs."""


def say(text: str) -> None:
    """Tell a step of the set-up, with the seconds since its start."""
    line = f"==> [{time.monotonic() - STARTED:.0f} s] {text}"
    print(f"\033[1m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def run(command: Iterable[object], what: str, **environment: str) -> None:
    """Run a command in the checkout with its output visible; `what` names it in the error."""
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=ROOT, env={**os.environ, **environment}, check=False)
    if result.returncode != 0:
        raise SetupError(f"{what} failed (exit code {result.returncode}): {' '.join(words)}")


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


@contextlib.contextmanager
def setup_lock() -> Iterator[None]:
    """One set-up of this checkout at a time; the kernel releases the lock of one that dies."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "setup.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("Waiting for another set-up of this checkout to finish…")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- uv ------------------------------------------------------------------------------------


def find_uv() -> str | None:
    """A recent uv: $UV, on PATH, or the one that install_uv put into .cache."""
    private = CACHE / "uv" / "bin" / "uv"
    for path in (os.environ.get("UV"), shutil.which("uv"), str(private)):
        if not path:
            continue
        try:
            output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        found = re.search(r"(\d+)\.(\d+)", output.stdout)
        if found and (int(found[1]), int(found[2])) >= OLDEST_UV:
            return path
    return None


def install_uv() -> str:
    """Install the locked uv into .cache, through a venv or, where Debian left that out, pip."""
    say("Installing uv into .cache/uv")
    folder = CACHE / "uv"
    shutil.rmtree(folder, ignore_errors=True)
    locked = ["--quiet", "--disable-pip-version-check", "--require-hashes"]
    locked += ["-r", str(REQUIREMENTS / "uv.txt")]
    if preflight.imports("ensurepip"):
        run([sys.executable, "-m", "venv", folder], "Creating .cache/uv")
        run([folder / "bin" / "python", "-m", "pip", "install", *locked], "Installing uv")
    else:
        target = ["install", "--target", str(folder)]
        run([sys.executable, "-m", "pip", *target, *locked], "Installing uv")
    return str(folder / "bin" / "uv")


def package_cache(uv: str | None) -> Path:
    if uv:
        output = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=False)
        if output.returncode == 0:
            return Path(output.stdout.strip())
    return Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))


# --- steps ---------------------------------------------------------------------------------


def requirements_key(level: str) -> str:
    return digest(REQUIREMENTS / name for name in LOCKS[level])


def vllm_key() -> str:
    return digest([REQUIREMENTS / "vllm.txt"], repr(VLLM_PATCHES))


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


def create_venv(uv: str, interpreter: str) -> None:
    say(f"Creating .venv with {interpreter}")
    shutil.rmtree(VENV, ignore_errors=True)
    run([uv, "venv", "--quiet", "--python", interpreter, VENV], "Creating .venv")


def install_requirements(uv: str, level: str, resumed: bool) -> None:
    say("Installing the locked packages (2.5 GB to download on Linux, less on a Mac)")
    locks = [REQUIREMENTS / name for name in LOCKS[level]]
    # A package whose copying was interrupted looks installed: put all of them in place again.
    again = ["--reinstall"] if resumed else []
    run(
        [uv, "pip", "sync", "--python", VENV_PYTHON, "--require-hashes", *again, *locks],
        "Installing the locked packages",
    )


def fetch_vllm_source(folder: Path) -> Path:
    """Download vLLM's source distribution, its hash checked against requirements/vllm.txt."""
    run(
        [VENV_PYTHON, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", "--no-binary", "vllm", "--require-hashes",
         "-r", REQUIREMENTS / "vllm.txt", "-d", folder],
        "Fetching vLLM",
        VLLM_TARGET_DEVICE="empty",
        # pip compares the version in the archive's metadata, which has no "+empty", to this one.
        VLLM_VERSION_OVERRIDE=locked_vllm_version(),
    )  # fmt: skip
    (archive,) = folder.glob("vllm-*.tar.gz")
    return archive


def locked_vllm_version() -> str:
    found = re.search(r"^vllm==(\S+)", (REQUIREMENTS / "vllm.txt").read_text(), re.MULTILINE)
    assert found, "requirements/vllm.txt names no version"
    return found[1]


def patch_vllm(source: Path) -> None:
    path = source / "setup.py"
    text = path.read_text(encoding="utf-8")
    for old, new in VLLM_PATCHES:
        if text.count(old) != 1:
            raise SetupError(f"{path} has {old!r} {text.count(old)} times, expected once.")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def build_vllm(key: str) -> Path:
    """Pure-Python wheel of vLLM, kept in .cache/vllm under the key of what it was made from."""
    folder = CACHE / "vllm" / key[:12]
    built = list(folder.glob("*.whl"))
    if built:
        return built[0]
    work = CACHE / "vllm" / "build"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    archive = fetch_vllm_source(work)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(work, filter="data")
        else:
            tar.extractall(work)
    source = work / archive.name[: -len(".tar.gz")]
    patch_vllm(source)
    run(
        [VENV_PYTHON, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--no-build-isolation", source, "-w", work],
        "Building vLLM",
        VLLM_TARGET_DEVICE="empty",
    )  # fmt: skip
    (wheel,) = work.glob("*.whl")
    folder.mkdir(parents=True, exist_ok=True)
    wheel.replace(folder / wheel.name)
    shutil.rmtree(work)
    return folder / wheel.name


def install_vllm(uv: str, key: str) -> None:
    say(f"Installing vLLM {locked_vllm_version()}, built from source without device code")
    install_wheel(uv, build_vllm(key))


def install_package(uv: str, level: str) -> None:
    """Build and install this package; compiler output is kept in build/release."""
    say("Building vllm-metal (C++; minutes the first time, then only what changed)")
    with_tests = "ON" if level == "dev" else "OFF"
    wheels = CACHE / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    environment = {"PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
    if shutil.which("ccache"):
        environment["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    run(
        [uv, "build", "--wheel", "--no-build-isolation", "--python", VENV_PYTHON, "-o", wheels,
         "-C", f"build-dir={BUILD}", "-C", f"cmake.define.VLLM_METAL_BUILD_TESTS={with_tests}",
         ROOT],
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


def check_machine(uv: str | None, new_venv: bool, more: list[Problem]) -> str:
    """All problems at once; returns the interpreter for a new .venv ('' leaves it to uv)."""
    python = os.environ.get("PYTHON") if new_venv else str(VENV_PYTHON)
    interpreter, problems = preflight.choose_interpreter(python)
    problems = [
        *preflight.check_platform(),
        *problems,
        *preflight.check_compiler(),
        *preflight.check_tools(),
        *preflight.check_installer(uv is not None),
        *preflight.check_disk(ROOT, package_cache(uv), whole=new_venv),
        *more,
    ]
    if problems:
        raise SetupError(preflight.report(problems))
    return interpreter.path if interpreter else ""


def managed_python(uv: str) -> str:
    """Let uv fetch a Python where the system has none that fits (a Mac's own is 3.9)."""
    version = preflight.MANAGED_PYTHON
    say(f"No Python 3.11 to 3.13 here: fetching {version} with uv")
    for command in (["install", version], ["find", "--managed-python", version]):
        result = subprocess.run(
            [uv, "python", *command], stdout=subprocess.PIPE, text=True, check=False
        )
        if result.returncode != 0:
            raise SetupError(preflight.report([preflight.no_interpreter()]))
    return result.stdout.strip()


def ensure(level: str, more_problems: list[Problem]) -> None:
    """Bring .venv up to date for `level`, or raise SetupError with everything that is missing."""
    with setup_lock():
        new_venv = not venv_works()
        state = {} if new_venv else read_state()
        if level == "serve" and state.get("level") == "dev":
            level = "dev"  # what tests need stays; serving needs less
        keys = {
            "requirements": requirements_key(level),
            "vllm": vllm_key(),
            "package": package_key(level),
        }
        pending = [step for step, key in keys.items() if state.get(step) != key]
        if not pending:
            if more_problems:
                raise SetupError(preflight.report(more_problems))
            return
        uv = find_uv()
        interpreter = check_machine(uv, new_venv, more_problems)
        uv = uv or install_uv()
        if new_venv:
            create_venv(uv, interpreter or managed_python(uv))
        if "requirements" in pending:
            resumed = "installing" in state
            write_state({"installing": "requirements"})  # sync removes vLLM and this package
            install_requirements(uv, level, resumed)
            state, pending = {}, list(keys)
        state = {**state, "level": level, "requirements": keys["requirements"]}
        write_state(state)
        for step, install in (
            ("vllm", lambda: install_vllm(uv, keys["vllm"])),
            ("package", lambda: install_package(uv, level)),
        ):
            if step in pending:
                install()
                state[step] = keys[step]
                write_state(state)
        say("Set-up is complete.")


def main() -> int:
    level = sys.argv[1] if len(sys.argv) == 2 else ""
    if level not in LOCKS:
        print(f"usage: {sys.argv[0]} {'|'.join(LOCKS)}", file=sys.stderr)
        return 2
    try:
        ensure(level, more_problems=[])
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command resumes.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
