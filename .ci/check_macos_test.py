# SPDX-License-Identifier: Apache-2.0
"""The rules of `make check-macos`: each finds what it is there for, and nothing in a sound wheel.

That the files are read right is shown where they are: the check spoils the extension it has built.
"""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import check_macos
import preflight
from checkout import SetupError
from macos import fetch, link, macho, resolve, stubs, toolchain

HOMES = {
    macho.LIBMLX: {"__ZN3mlx4core4evalE"},
    stubs.LIBCXX: {"___cxa_throw"},
    stubs.LIBSYSTEM: {"_malloc"},
    macho.PYTHON: {"_PyLong_FromLong"},
}


@pytest.fixture
def sound():
    return macho.Binary(
        name="_core.abi3.so",
        libraries=[macho.LIBMLX, stubs.LIBCXX, stubs.LIBSYSTEM],
        rpaths=[macho.RPATH],
        load_commands={"SEGMENT_64", "LOAD_DYLIB", "CODE_SIGNATURE"},
        exported={"_PyInit__core"},
        imported={name: home for home, names in HOMES.items() for name in names},
    )


def test_nothing_is_said_of_a_sound_extension(sound):
    assert list(macho.problems(sound, HOMES)) == []


SPOILT = {
    "architecture": ({"architecture": "X86_64"}, "a BUNDLE for X86_64"),
    "kind": ({"kind": "DYLIB"}, "a DYLIB for ARM64"),
    "newer": ({"minimum_os": (15, 0)}, "MACOS 15.0, not for MACOS 14.0"),
    "older": ({"minimum_os": (13, 0)}, "MACOS 13.0, not for MACOS 14.0"),
    "simulator": ({"platform": "IOS_SIMULATOR"}, "IOS_SIMULATOR 14.0"),
    "unsigned": ({"signed": False}, "not signed"),
    "command": ({"load_commands": {"LOAD_DYLINKER"}}, "load command LOAD_DYLINKER"),
    "entry": ({"exported": {"_PyInit_core"}}, "PyInit__core"),
    "runtime": ({"defined": {"___cxa_throw"}}, "a C++ runtime of its own: ___cxa_throw"),
    "no libc++": ({"libraries": [macho.LIBMLX, stubs.LIBSYSTEM]}, f"not load {stubs.LIBCXX}"),
    "no rpath": ({"rpaths": []}, "its rpaths are []"),
    "more rpaths": ({"rpaths": [macho.RPATH, "/opt/lib"]}, "/opt/lib"),
    "no home": ({"imported": {"_free": stubs.LIBSYSTEM}}, "_free is imported from"),
    "home": ({"imported": {"_cblas": "Accelerate"}}, "Accelerate, which is none of"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_would_not_load_is_named(sound, name):
    changes, expected = SPOILT[name]
    found = list(macho.problems(dataclasses.replace(sound, **changes), HOMES))
    assert any(expected in problem for problem in found), found


def test_a_library_that_is_not_allowed_is_named(sound):
    sound.libraries.append("/opt/homebrew/lib/libomp.dylib")
    (problem,) = macho.problems(sound, HOMES)
    assert "loads /opt/homebrew/lib/libomp.dylib" in problem


PACKAGE = ["vllm_metal/platform.py", "vllm_metal/py.typed"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["vllm_metal/_core.abi3.so", *PACKAGE], ""),
        (["vllm_metal/_core.cpython-311-darwin.so", *PACKAGE], ""),
        (["vllm_metal/_core.cpython-311-x86_64-linux-gnu.so", *PACKAGE], "no suffix of macOS"),
        (["vllm_metal/_core.abi3.so", "mlx/lib/libmlx.dylib", *PACKAGE], "libmlx.dylib"),
        (PACKAGE, "not vllm_metal/_core."),
        (["vllm_metal/_core.abi3.so", "vllm_metal/platform.py"], "lacks vllm_metal/py.typed"),
    ],
)
def test_a_wheel_holds_the_extension_and_no_other_library(names, expected):
    found = list(macho.wheel_problems(names))
    assert found == [] if not expected else any(expected in problem for problem in found)


def test_the_linker_gets_what_is_for_it():
    words = [
        *("-O3", "-bundle", "-Wl,-dead_strip,-x", "-Wl,-headerpad_max_install_names"),
        *("-o", "_core.so", "a.o", "-Wl,@python.sym", "-framework", "Metal", "libmlx.dylib"),
    ]
    with pytest.raises(ValueError, match="-framework"):
        list(link.linker_words(words))
    del words[8:10]
    assert list(link.linker_words(words)) == [
        *("-bundle", "-dead_strip", "-x", "-o", "_core.so", "a.o", "@python.sym", "libmlx.dylib"),
    ]


SYSTEM = """--- !tapi-tbd
tbd-version:     4
targets:         [ x86_64-macos, arm64e-macos ]
install-name:    '/usr/lib/libSystem.B.dylib'
exports:
  - targets:         [ x86_64-macos, arm64e-macos ]
    symbols:         [ _malloc,
                       '_open$NOCANCEL' ]
  - targets:         [ x86_64-macos ]
    symbols:         [ '_open$INODE64' ]
--- !tapi-tbd
install-name:    '/usr/lib/system/libdyld.dylib'
exports:
  - targets:         [ arm64e-macos ]
    thread-local-symbols: [ __tls ]
    weak-symbols:    [ _weak ]
...
"""


def test_names_of_a_stub_are_those_for_arm64():
    assert stubs.exported_names(SYSTEM) == {"_malloc", "_open$NOCANCEL", "__tls", "_weak"}


def test_a_stub_that_is_written_is_read_back():
    names = {"_a", "__ZN3fooE", "_open$NOCANCEL"}
    assert stubs.exported_names(stubs.stub(stubs.LIBCXX, names)) == names


def test_every_name_of_the_standard_library_says_what_it_is():
    lines = toolchain.LIBCXX_NAMES.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names
    for line in names:
        name, what = line.split("  # ")
        assert name.startswith("__Z")
        assert "std::" in what or "operator delete" in what


def test_mlx_comes_from_the_lock_with_its_hashes():
    lines = fetch.locked_mlx().splitlines()
    assert [line.split("==")[0] for line in lines] == ["mlx", "mlx-metal"]
    assert all("--hash=sha256:" in line and "sys_platform" not in line for line in lines)


@pytest.mark.parametrize(
    ("version", "tag"), [("3.11", "cp311-cp311"), ("3.12", "cp312-abi3"), ("3.13", "cp312-abi3")]
)
def test_each_python_gets_the_wheel_that_pip_takes(version, tag):
    wheels = [Path(f"p-1-{name}-macosx_14_0_arm64.whl") for name in ("cp311-cp311", "cp312-abi3")]
    assert f"-{tag}-" in resolve.fitting(wheels, version).name


def test_a_python_without_a_wheel_is_an_error():
    with pytest.raises(ValueError, match=r"Python 3\.11"):
        resolve.fitting([Path("p-1-cp312-abi3-macosx_14_0_arm64.whl")], "3.11")


def test_a_linker_that_cannot_be_had_is_one_line_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "FOLDER", tmp_path)
    monkeypatch.setattr(fetch.shutil, "which", lambda name, **_: None)
    monkeypatch.setattr(preflight, "install_command", lambda apt, brew: f"install {apt}")
    with pytest.raises(SetupError, match=r"^No ld64\.lld .* install lld-19$"):
        fetch.find_linker()


@pytest.mark.parametrize(
    ("output", "version"), [("LLD 22.1.8", 22), ("Debian LLD 19.1.7", 19), ("GNU ld 2.40", 0)]
)
def test_the_version_of_a_linker_is_read(tmp_path, output, version):
    program = tmp_path / "ld64.lld"
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    assert fetch.lld_version([str(program)]) == version
    assert fetch.lld_version([str(tmp_path / "none")]) == 0


def test_a_python_that_cannot_be_had_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(fetch, "interpreters", lambda version: iter(()))
    monkeypatch.setattr(preflight, "install_command", lambda apt, brew: f"install {apt}")
    message = r"No Python 3\.12 or 3\.13 with headers was found, (?s:.)*install python3\.12-dev"
    with pytest.raises(SetupError, match=message):
        fetch.find_python("false", ("3.12", "3.13"))


@pytest.mark.parametrize(
    ("system", "machine", "fits"),
    [("linux", "x86_64", True), ("linux", "aarch64", True), ("darwin", "arm64", False)],
)
def test_the_check_runs_on_linux_and_says_so(monkeypatch, system, machine, fits):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(check_macos.platform, "machine", lambda: machine)
    if fits:
        check_macos.check_host()
    else:
        with pytest.raises(SetupError, match="make test"):
            check_macos.check_host()
