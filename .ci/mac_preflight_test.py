# SPDX-License-Identifier: Apache-2.0
"""What scripts and reports say on a Mac, with the Mac faked."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import preflight
from vllm_metal.selftest import facts


@pytest.fixture
def mac(monkeypatch):
    """A Mac of a release and an architecture of its Python."""

    def fake(release="15.1", architecture="arm64"):
        monkeypatch.setattr(preflight.sys, "platform", "darwin")
        monkeypatch.setattr(preflight.platform, "machine", lambda: architecture)
        monkeypatch.setattr(preflight.platform, "mac_ver", lambda: (release, ("", "", ""), ""))

    return fake


@pytest.mark.parametrize("release", ["14.0", "14.7.6", "15.0", "15.7", "26.0", "26.1"])
def test_macos_14_and_later_will_do(mac, release):
    mac(release)
    assert preflight.check_platform() == []


@pytest.mark.parametrize("release", ["13.6.9", "12.7", "10.16"])
def test_an_older_macos_is_named(mac, release):
    mac(release)
    (problem,) = preflight.check_platform()
    assert problem.what == f"macOS {release} is too old; 14 or later is needed."


def test_a_python_under_rosetta_is_told_from_an_old_mac(mac):
    mac("15.1", "x86_64")
    (problem,) = preflight.check_platform()
    assert "runs as x86_64; MLX needs Apple Silicon" in problem.what
    assert "native" in problem.mend


def test_packages_are_homebrews(mac):
    mac()
    assert preflight.install_command("libgtest-dev", "googletest") == "brew install googletest"


def test_tools_are_the_command_line_tools(mac, monkeypatch):
    mac()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    mends = [problem.mend for problem in (*preflight.check_compiler(), *preflight.check_tools())]
    assert mends == ["xcode-select --install"] * 2


@pytest.mark.parametrize(("platform", "gigabytes"), [("darwin", 3), ("linux", 6)])
def test_a_mac_needs_less_room(monkeypatch, tmp_path, platform, gigabytes):
    monkeypatch.setattr(preflight.sys, "platform", platform)
    free = preflight.shutil._ntuple_diskusage(0, 0, gigabytes * preflight.GIB - 1)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: free)
    (problem, *_) = preflight.check_disk(tmp_path, tmp_path, whole=True)
    assert f"needs {gigabytes} GiB" in problem.what


CHIPS = [f"Apple M{number}{kind}" for number in range(1, 6) for kind in ("", " Pro", " Max")]


@pytest.mark.parametrize("chip", CHIPS)
def test_reports_name_the_chip(monkeypatch, chip):
    def run(command, **_):
        assert command == ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.CompletedProcess(command, 0, f"{chip}\n", "")

    monkeypatch.setattr(facts.sys, "platform", "darwin")
    monkeypatch.setattr(facts.subprocess, "run", run)
    assert facts.processor() == chip


def test_a_mac_has_all_its_cores(monkeypatch):
    monkeypatch.delattr(facts.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(facts.os, "cpu_count", lambda: 14)
    assert facts.num_cores() == 14


@pytest.mark.parametrize(("machine", "fits"), [("arm64", True), ("x86_64", False)])
def test_a_python_for_intel_does_not_do(mac, monkeypatch, machine, fits):
    mac()
    found = preflight.Interpreter("/usr/local/bin/python3.12", (3, 12), "", machine, False)
    monkeypatch.setattr(preflight, "inspect_interpreter", lambda _: found)
    assert preflight.fits(found) == fits
    if not fits:
        _, (problem,) = preflight.choose_interpreter("python3.12")
        assert "PYTHON=python3.12 is 3.12 for x86_64;" in problem.what
