# SPDX-License-Identifier: Apache-2.0
"""What a cross build for macOS takes, fetched by name into .cache/macos.

Compiler and headers are zig's (with clang and libc++ inside), the linker is LLVM's, MLX comes from
its wheels for macOS. Nothing of Apple's is needed. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import environments
import preflight
import uv_tool
from checkout import CACHE, REQUIREMENTS, SetupError, run, say
from environments import mark_done, up_to_date
from setup_env import digest

FOLDER = CACHE / "macos"
LOCK = REQUIREMENTS / "macos.txt"
MLX_LOCK = REQUIREMENTS / "serve.txt"
# The releases whose wheels of MLX differ; the extension must fit all of them.
MACOS_RELEASES = ("14.0", "15.0", "26.0")
DEBIAN_PACKAGES = ("lld-19", "libllvm19")
OLDEST_LLD = 16
# This system's configuration of Python, corrected where macOS on arm64 differs.
PYCONFIG = """
#include "pyconfig_host.h"
#undef SIZEOF_LONG_DOUBLE
#define SIZEOF_LONG_DOUBLE 8
#undef _GNU_SOURCE
#undef _POSIX_C_SOURCE
#undef _XOPEN_SOURCE
#undef _XOPEN_SOURCE_EXTENDED
"""


# --- Python ----------------------------------------------------------------------------------


def interpreters(version: str) -> Iterator[str]:
    """Places where an interpreter of a version may be."""
    if found := shutil.which(f"python{version}"):
        yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python3")))


def find_python(uv: str, versions: tuple[str, ...]) -> preflight.Interpreter:
    """An interpreter with headers of one of the versions, the first there is; else uv's own."""
    for version in versions:
        for path in interpreters(version):
            found = preflight.inspect_interpreter(path)
            if found and preflight.fits(found) and found.has_headers:
                return found
    lack = f"Python {' or '.join(versions)} with headers"
    found = preflight.inspect_interpreter(uv_tool.managed_python(uv, versions[0], lack))
    if found is None:
        raise SetupError(preflight.report([preflight.no_interpreter(lack, versions[0])]))
    return found


def environment(uv: str, interpreter: preflight.Interpreter) -> Path:
    """The environment with the compiler and what builds and reads wheels; returns its Python."""
    folder = FOLDER / "tools"
    key = digest([LOCK], interpreter.path)
    if not up_to_date(folder, key):
        say("Installing the compiler (100 MB to download at first)")
        environments.make(uv, interpreter.path, folder, key, LOCK, "--quiet")
    return environments.python_of(folder)


def packages(python: Path) -> Path:
    (folder,) = python.parent.parent.glob("lib/python3*/site-packages")
    return folder


def exporting_file(interpreter: preflight.Interpreter) -> str:
    """The program or library that has what an interpreter exports to extensions."""
    script = (
        "import os, sys, sysconfig as c; get = c.get_config_var; print(os.path.join("
        "get('LIBDIR'), get('INSTSONAME')) if get('Py_ENABLE_SHARED') else "
        "os.path.realpath(sys.executable))"
    )
    command = [interpreter.path, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def python_headers(interpreter: preflight.Interpreter) -> Path:
    """The interpreter's headers as they are on macOS."""
    folder = FOLDER / "python" / ".".join(map(str, interpreter.version))
    if not up_to_date(folder, interpreter.include):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path in Path(interpreter.include).iterdir():
            name = "pyconfig_host.h" if path.name == "pyconfig.h" else path.name
            (folder / name).symlink_to(path)
        (folder / "pyconfig.h").write_text(PYCONFIG, encoding="utf-8")
        mark_done(folder, interpreter.include)
    return folder


# --- MLX -------------------------------------------------------------------------------------


def locked_mlx() -> str:
    """The lines of the lock for MLX on macOS, with their hashes and without their markers."""
    text = MLX_LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if re.match(r"mlx(-metal)?==", line)]
    wanted = [re.sub(r" ;.*?(?= --hash)", "", line) for line in lines]
    if len(wanted) != 2:
        raise SetupError(f"{MLX_LOCK} does not lock mlx and mlx-metal for macOS: `make lock`")
    return "\n".join(wanted) + "\n"


def mlx_folder(release: str) -> Path:
    return FOLDER / f"mlx-{release}" / "mlx"


def fetch_mlx(uv: str, release: str) -> None:
    target = mlx_folder(release).parent
    locked = locked_mlx()
    if up_to_date(target, locked):
        return
    say(f"Fetching MLX for macOS {release} (45 MB to download at first)")
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "mlx.txt").write_text(locked, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    run(
        [uv, "pip", "install", "--quiet", "--target", target, "--no-deps", "--require-hashes",
         "--python-platform", "aarch64-apple-darwin", "--python-version", "3.12",
         "--only-binary", ":all:", "-r", FOLDER / "mlx.txt"],
        f"Fetching MLX for macOS {release}",
        MACOSX_DEPLOYMENT_TARGET=release,
    )  # fmt: skip
    mark_done(target, locked)


# --- the linker ------------------------------------------------------------------------------


def lld_version(command: list[str]) -> int:
    """The major version of LLVM's linker for macOS; 0 if it does not run."""
    try:
        output = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.search(r"LLD (\d+)\.", output.stdout)
    return int(found[1]) if found else 0


def unpack_debian_lld(folder: Path) -> None:
    """Unpack Debian's package, which need not be installed for that."""
    say(f"Fetching {' and '.join(DEBIAN_PACKAGES)} from Debian (27 MB)")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = ["apt-get", "download", "-qq", *DEBIAN_PACKAGES]
    first = subprocess.run(command, cwd=folder, stderr=subprocess.DEVNULL, check=False)
    if first.returncode != 0:  # the lists are absent or old
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(command, cwd=folder, check=False)
    for package in folder.glob("*.deb"):
        run(["dpkg", "-x", package, folder], f"Unpacking {package.name}")
        package.unlink()


def find_linker() -> list[str]:
    """The command of an ld64.lld that is recent enough: an installed one, else Debian's."""
    for name in ("ld64.lld", *(f"ld64.lld-{version}" for version in range(30, OLDEST_LLD - 1, -1))):
        if (path := shutil.which(name)) and lld_version([path]) >= OLDEST_LLD:
            return [path]
    folder = FOLDER / "lld"
    llvm = folder / "usr" / "lib" / "llvm-19"
    if not (llvm / "bin" / "lld").exists() and shutil.which("apt-get") and shutil.which("dpkg"):
        unpack_debian_lld(folder)
    libraries = [*sorted(folder.glob("usr/lib/*-linux-gnu")), llvm / "lib"]
    command = ["env", f"LD_LIBRARY_PATH={':'.join(map(str, libraries))}"]
    command += [str(llvm / "bin" / "lld"), "-flavor", "darwin"]
    if lld_version(command) < OLDEST_LLD:
        raise SetupError(
            f"No ld64.lld of LLVM {OLDEST_LLD} or later, and Debian's could not be fetched: "
            + preflight.install_command("lld-19", "lld")
        )
    return command
