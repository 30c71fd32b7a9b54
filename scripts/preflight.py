# SPDX-License-Identifier: Apache-2.0
"""What a machine must have before set-up starts; each lack comes with the command that mends it.

Standard library only, Python 3.9 and later: this runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PYTHON_VERSIONS = ((3, 11), (3, 12), (3, 13))
MANAGED_PYTHON = "3.12"  # what uv is asked for where the system has no Python that fits
GIB = 1 << 30
# Measured on Linux x86_64: packages 4.6 GB (most of it torch and the CUDA libraries it links to);
# vLLM's source, compiler output, the model and archives being unpacked about 1 GB. Mac: estimated.
DISK_NEEDED = {"linux": 6 * GIB, "darwin": 3 * GIB}


@dataclass(frozen=True)
class Problem:
    what: str
    mend: str


@dataclass(frozen=True)
class Interpreter:
    path: str
    version: tuple[int, int]
    include: str
    machine: str
    free_threaded: bool

    @property
    def has_headers(self) -> bool:
        return (Path(self.include) / "Python.h").exists()


def is_mac() -> bool:
    return sys.platform == "darwin"


def install_command(apt: str, brew: str) -> str:
    """Command of this system's package manager, as one would type it."""
    if is_mac():
        return f"brew install {brew}"
    sudo = "" if hasattr(os, "geteuid") and os.geteuid() == 0 else "sudo "
    if shutil.which("apt-get"):
        return f"{sudo}apt-get install -y {apt}"
    return f"install the package that Debian calls {apt}"


def inspect_interpreter(path: str) -> Interpreter | None:
    """Ask an interpreter what it is; None if it does not run."""
    probe = (
        "import json, platform, sys, sysconfig; print(json.dumps([sys.version_info[:2],"
        " sysconfig.get_path('include'), platform.machine(),"
        " bool(sysconfig.get_config_var('Py_GIL_DISABLED')), sys.executable]))"
    )
    try:
        output = subprocess.run(
            [path, "-c", probe], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        version, include, machine, free_threaded, executable = json.loads(output)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return Interpreter(executable, tuple(version), include, machine, free_threaded)


def is_for_intel_mac(interpreter: Interpreter) -> bool:
    """Whether MLX has no wheels for it."""
    return is_mac() and interpreter.machine != "arm64"


def fits(interpreter: Interpreter) -> bool:
    return (
        interpreter.version in PYTHON_VERSIONS
        and not interpreter.free_threaded
        and not is_for_intel_mac(interpreter)
    )


def choose_interpreter(requested: str | None) -> tuple[Interpreter | None, list[Problem]]:
    """First interpreter of a supported version that has its C headers.

    None without a problem means that the system has none and uv may fetch one.
    """
    if requested:
        interpreter = inspect_interpreter(requested)
        if interpreter is None or not fits(interpreter):
            found = "does not run"
            if interpreter:
                found = f"is {'.'.join(map(str, interpreter.version))}"
                if is_for_intel_mac(interpreter):
                    found += f" for {interpreter.machine}"
            what = f"PYTHON={requested} {found}; Python 3.11, 3.12 or 3.13 is needed."
            return None, [Problem(what, "make serve PYTHON=python3.12")]
        candidates = [interpreter]
    else:
        names = ["python3", *(f"python{major}.{minor}" for major, minor in PYTHON_VERSIONS)]
        inspected = [inspect_interpreter(path) for path in map(shutil.which, names) if path]
        candidates = [i for i in inspected if i and fits(i)]
    for candidate in candidates:
        if candidate.has_headers:
            return candidate, []
    if candidates:
        first = candidates[0]
        version = ".".join(map(str, first.version))
        what = f"The C headers of {first.path} are missing ({first.include}/Python.h)."
        mend = install_command(f"python{version}-dev", f"python@{version}")
        return None, [Problem(what, mend)]
    return None, []


def no_interpreter(lack: str = "Python 3.11 to 3.13", wanted: str | None = None) -> Problem:
    what = f"No {lack} was found, and uv could not fetch one."
    packages = f"python{wanted}-dev" if wanted else "python3 python3-dev"
    return Problem(what, install_command(packages, f"python@{wanted or MANAGED_PYTHON}"))


def check_platform() -> list[Problem]:
    """Systems for which the packages we build on exist."""
    if is_mac():
        release = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:1])
        if platform.machine() != "arm64":
            what = f"This Python runs as {platform.machine()}; MLX needs Apple Silicon (arm64)."
            mend = "start a native terminal, or run make with SYSTEM_PYTHON=/usr/bin/python3"
            return [Problem(what, mend)]
        if release < (14,):
            what = f"macOS {platform.mac_ver()[0]} is too old; 14 or later is needed."
            return [Problem(what, "softwareupdate --list")]
        return []
    if not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"):
        what = f"{sys.platform} on {platform.machine()} is not supported."
        return [Problem(what, "use macOS on Apple Silicon, or Linux on x86_64 or aarch64")]
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        what = f"MLX's wheels need glibc 2.35 or later; this system has {library} {version}."
        return [Problem(what, "use Debian 12, Ubuntu 22.04 or later")]
    return []


COMPILER_PROBE = """
#if defined(__apple_build_version__)
#if __clang_major__ < 15
#error too old
#endif
#elif defined(__clang__)
#if __clang_major__ < 14
#error too old
#endif
#elif __GNUC__ < 12
#error too old
#endif
#include <charconv>
#include <concepts>
#include <span>
int main() { std::span<int> empty; return static_cast<int>(empty.size()); }
"""


def check_compiler() -> list[Problem]:
    """Compile a few lines of C++20: finds a missing, an old and a half-installed compiler."""
    mend = "xcode-select --install" if is_mac() else install_command("g++", "")
    found = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    compiler = os.environ.get("CXX") or (found[0] if found else "c++")
    if shutil.which(compiler.split()[0]) is None:
        return [Problem(f"No C++ compiler: {compiler} was not found.", mend)]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(COMPILER_PROBE, encoding="utf-8")
        command = [*compiler.split(), "-std=c++20", "-fsyntax-only", str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return []
    if "too old" in result.stderr:
        what = f"{compiler} is too old: g++ 12, clang 14 or Xcode 15 is needed."
        return [Problem(what, mend if is_mac() else install_command("g++-12", "") + "; CXX=g++-12")]
    lines = result.stderr.strip().splitlines() or ["(no message)"]
    return [Problem(f"{compiler} cannot compile C++20: {lines[0]}", mend)]


def check_tools() -> list[Problem]:
    if shutil.which("git"):
        return []
    mend = "xcode-select --install" if is_mac() else install_command("git", "git")
    return [Problem("git was not found.", mend)]


GOOGLETEST_PACKAGES = ("libgtest-dev", "libgmock-dev")


def has_googletest() -> bool:
    """Whether CMake will find GoogleTest's package in one of its usual prefixes."""
    more = os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)
    for prefix in ("/usr", "/usr/local", "/opt/homebrew", *filter(None, more)):
        for folder in ("lib*", "lib/*"):
            if any(Path(prefix).glob(f"{folder}/cmake/GTest/GTestConfig.cmake")):
                return True
    return False


def check_googletest() -> list[Problem]:
    if has_googletest():
        return []
    mend = install_command(" ".join(GOOGLETEST_PACKAGES), "googletest")
    return [Problem("GoogleTest, which the C++ tests use, was not found.", mend)]


def imports(module: str) -> bool:
    """Whether the running Python has the module (Debian splits ensurepip off)."""
    command = [sys.executable, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def check_installer(uv_found: bool) -> list[Problem]:
    """Without uv on PATH, this Python must be able to install it for itself."""
    if uv_found:
        return []
    for module in ("ensurepip", "pip"):
        if imports(module):
            return []
    what = f"{sys.executable} has neither ensurepip nor pip, and uv is not on PATH."
    return [Problem(what, install_command("python3-venv", "uv"))]


def existing_parent(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def check_disk(checkout: Path, package_cache: Path, whole: bool) -> list[Problem]:
    """Room for the packages: once if uv can link them from its cache, else in both places.

    Not `whole`: most of it is there already, from an earlier or an interrupted set-up.
    """
    needed = DISK_NEEDED["darwin" if is_mac() else "linux"] if whole else GIB
    places: dict[int, Path] = {}  # by file system
    for path in (checkout, package_cache):
        parent = existing_parent(path)
        places.setdefault(parent.stat().st_dev, parent)
    problems = []
    for place in places.values():
        free = shutil.disk_usage(place).free
        if free < needed:
            what = f"{place} has {free / GIB:.1f} GiB free; set-up needs {needed / GIB:.0f} GiB."
            problems.append(Problem(what, "free some space (uv cache clean), or move the checkout"))
    return problems


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_port(port: int) -> list[Problem]:
    if port_is_free(port):
        return []
    free = next((p for p in range(port + 1, min(port + 100, 65536)) if port_is_free(p)), 8000)
    return [Problem(f"Port {port} on 127.0.0.1 is in use.", f"make serve PORT={free}")]


def report(problems: list[Problem]) -> str:
    lines = ["", "This machine is not ready yet:"]
    for problem in problems:
        lines += [f"  - {problem.what}", f"      {problem.mend}"]
    return "\n".join(lines)
