# SPDX-License-Identifier: Apache-2.0
"""install.sh: what it refuses, what it runs, and that it leaves all or nothing behind."""

import re
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from install_sandbox import ROOT, SCRIPT, WHOLE, Sandbox, mac


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


# --- what stands in the way: nothing may be changed --------------------------------------------

REFUSED = {
    "macOS 13": (mac("13.7.8"), "macOS 13.7.8 is too old; MLX needs macOS 14"),
    "Rosetta": (mac("15.1", FAKE_MACHINE="x86_64", FAKE_ROSETTA="1"), "runs under Rosetta"),
    "Intel": (mac("15.1", FAKE_MACHINE="x86_64"), "Intel processor"),
    "Python for Intel": (
        mac("26.0", FAKE_PYTHON_MACHINE="x86_64", PYTHON="python3.12"), "is built for Intel",
    ),
    "Python for Intel and no other": (
        mac("26.0", FAKE_PYTHON_MACHINE="x86_64", FAKE_FAIL="python install"), "is built for Intel",
    ),
    "old glibc": ({"FAKE_GLIBC": "2.31"}, "glibc 2.35 or later; this system has glibc 2.31"),
    "32 bits": ({"FAKE_MACHINE": "armv7l"}, "Linux on armv7l is not supported"),
    "other system": ({"FAKE_SYSTEM": "FreeBSD"}, "FreeBSD is not supported"),
    "no disk": ({"FAKE_FREE_KB": "5000000"}, "has 4 GiB free; the installation needs 6 GiB"),
    "no disk for CUDA": (
        {"FAKE_FREE_KB": "8000000", "FAKE_DRIVER": "580.65.06"},
        "has 7 GiB free; the installation needs 10 GiB",
    ),
    "no network for uv": ({"FAKE_UV": "0.4.1", "FAKE_NETWORK": "no"}, "uv could not be fetched"),
    "no Python": ({"FAKE_PYTHON": "no", "FAKE_FAIL": "python install"}, "no Python 3.11 to 3.13"),
    "Python 3.10": ({"FAKE_PYTHON_TAG": "310"}, "is Python 3.10; 3.11, 3.12 or 3.13 is needed"),
    "no headers": ({"FAKE_CHECK": "1"}, "Nothing is left of it"),
    "packages fail": ({"FAKE_FAIL": "pip sync"}, "Nothing is left of it"),
    "doctor": ({"FAKE_DOCTOR": "1"}, "doctor is not content"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_stands_in_the_way_is_named_and_nothing_is_left(sandbox, name):
    facts, message = REFUSED[name]
    code, output = sandbox.run(**facts)
    assert code == 1
    assert message in output
    assert sandbox.left() == []


@pytest.mark.parametrize("arguments", [[], ["--version", "0.2.0", "--from-source"]])
@pytest.mark.parametrize(("facts", "message"), [
    ({}, "apt-get install -y g++"), (mac("14.5", FAKE_XCODE="2"), "xcode-select --install"),
])  # fmt: skip
def test_without_a_compiler_nothing_is_fetched(sandbox, arguments, facts, message):
    (sandbox.bin / "c++").unlink()
    code, output = sandbox.run(*arguments, **facts)
    assert code == 1
    assert message in output
    assert sandbox.log == ""
    assert sandbox.left() == []


ARGUMENTS = {
    "an option": (["--frobnicate"], "unknown option --frobnicate"),
    "a word": (["now"], "unknown option now"),
    "no version": (["--version"], "--version needs a value"),
    "bad version": (["--version", "../../x"], "--version ../../x is not a version"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_that_are_not_understood(sandbox, name):
    arguments, message = ARGUMENTS[name]
    code, output = sandbox.run(*arguments)
    assert code == 1
    assert message in output
    assert sandbox.log == ""


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help(sandbox, option):
    code, output = sandbox.run(option)
    assert code == 0
    assert output.startswith("Usage: install.sh [options]")
    assert sandbox.log == ""


PLACES = {
    "files of the user": (
        lambda home: (home / "thesis.txt").touch(), "", "is no Python environment",
    ),
    "files in the usual place": (
        lambda home: ((home / ".venv-vllm-metal").mkdir(),
                      (home / ".venv-vllm-metal" / "notes.txt").touch()),
        ".venv-vllm-metal", "is no Python environment",
    ),
    "a file": (lambda home: (home / "v").touch(), "v", "is a file"),
    "a link": (lambda home: (home / "v").symlink_to(home), "v", "is a symbolic link"),
    "a colon": (lambda home: None, "a:b", "has a colon"),
    "another's environment": (
        lambda home: ((home / "v").mkdir(), (home / "v" / "pyvenv.cfg").touch()),
        "v", "that install.sh did not make",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("action", [[], ["--uninstall"]])
def test_places_that_are_not_ours(sandbox, name, action):
    prepare, place, message = PLACES[name]
    prepare(sandbox.home)
    before = sandbox.left()
    code, output = sandbox.run(*action, VLLM_METAL_VENV=str(sandbox.home / place))
    assert code == 1
    assert message in output
    assert sandbox.left() == before


# --- installations -----------------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{}, mac("14.0"), mac("15.6.1"), mac("26.1")])
def test_a_checkout_is_installed_from_its_source(sandbox, facts):
    code, output = sandbox.run(**facts)
    assert code == 0, output
    assert "build vllm-metal" in sandbox.log
    assert "build vllm\n" in sandbox.log
    assert "curl" not in sandbox.log
    assert sandbox.log.endswith("doctor\n")
    assert f"source {sandbox.venv}/bin/activate" in output
    assert sandbox.installed().startswith(f"checkout {sandbox.checkout}")
    assert sandbox.left() == [".venv-vllm-metal"]


def test_uv_is_fetched_where_there_is_none(sandbox):
    uv = (sandbox.bin / "uv").read_text()
    (sandbox.bin / "uv").unlink()
    script = sandbox.web / "astral.sh/uv/0.13.9/install.sh"
    script.parent.mkdir(parents=True)
    (sandbox.folder / "fetched-uv").write_text(uv)
    script.write_text(
        'mkdir -p "$UV_UNMANAGED_INSTALL"\ncd "$UV_UNMANAGED_INSTALL"\n'
        f"cp {sandbox.folder}/fetched-uv uv\n/bin/chmod +x uv\n"
    )
    code, output = sandbox.run()
    assert code == 0, output
    assert (sandbox.venv / "bin" / "uv").read_text() == uv
    assert sandbox.left() == [".venv-vllm-metal"]
    for _ in range(2):  # with the one in the environment, which is handed on
        assert sandbox.run()[0] == 0
        assert "astral.sh" not in sandbox.log


@pytest.mark.parametrize(
    ("facts", "name"), [({}, "3.12"), (mac("15.0"), "cpython-3.12-macos-aarch64-none")]
)
def test_python_is_fetched_where_there_is_none(sandbox, facts, name):
    code, output = sandbox.run(FAKE_PYTHON="no", **facts)
    assert code == 0, output
    assert f"uv python install --no-bin {name}\n" in sandbox.log
    assert f"--relocatable --python {name} " in sandbox.log


# --- again, interrupted, killed, two at once, removed ------------------------------------------


def test_a_second_run_has_nothing_to_do_until_a_new_release(sandbox):
    sandbox.release("0.2.0", *WHOLE)
    assert sandbox.run(piped=True, **mac("15.0"))[0] == 0
    code, output = sandbox.run(piped=True, **mac("15.0"))
    assert code == 0
    assert "installed in" in output
    assert "uv venv" not in sandbox.log
    shutil.rmtree(sandbox.venv)  # as it says
    assert sandbox.run(piped=True, **mac("15.0"))[0] == 0
    assert sandbox.installed().startswith("release 0.2.0")
    sandbox.release("0.3.0", *(name.replace("0.2.0", "0.3.0") for name in WHOLE))
    assert sandbox.run(piped=True, **mac("15.0"))[0] == 0
    assert sandbox.installed().startswith("release 0.3.0")


def test_an_update_that_fails_keeps_the_earlier_installation(sandbox):
    assert sandbox.run()[0] == 0
    (sandbox.venv / "mine").touch()
    code, output = sandbox.run(FAKE_DOCTOR="1")
    assert code == 1
    assert "is as it was" in output
    assert (sandbox.venv / "mine").exists()
    assert sandbox.left() == [".venv-vllm-metal"]
    assert sandbox.run()[0] == 0
    assert not (sandbox.venv / "mine").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_installation_leaves_nothing(sandbox, number):
    process = sandbox.start_hanging("pip sync")
    process.send_signal(number)  # to the script alone, as `kill` does
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in output
    assert sandbox.left() == []
    assert not sandbox.hanging_process_lives()


@pytest.mark.parametrize("where", ["venv", "pip sync", "--no-deps"])
def test_after_a_kill_the_next_run_cleans_up(sandbox, where):
    assert sandbox.run()[0] == 0
    (sandbox.venv / "mine").touch()
    process = sandbox.start_hanging(where)
    process.kill()
    process.wait()
    sandbox.end_hanging()
    process.stdout.close()
    assert (sandbox.venv / "mine").exists()
    assert len(sandbox.left()) == 3
    code, output = sandbox.run()
    assert code == 0, output
    assert "killed" in output
    assert sandbox.left() == [".venv-vllm-metal"]


@pytest.mark.parametrize("option", [(), ("--uninstall",)])
def test_a_folder_of_others_in_its_way_is_left_alone(sandbox, option):
    work = sandbox.home / ".venv-vllm-metal.install"
    work.mkdir()
    (work / "mine").touch()
    code, output = sandbox.run(*option)
    assert code == 1
    assert "did not put there" in output
    assert (work / "mine").exists()


def test_a_kill_between_the_two_renames_loses_nothing(sandbox):
    assert sandbox.run()[0] == 0
    work = sandbox.home / ".venv-vllm-metal.install"
    work.mkdir()
    (work / ".vllm-metal").touch()
    sandbox.venv.rename(work / "old")
    code, _ = sandbox.run(FAKE_FAIL="pip sync")
    assert code == 1
    assert sandbox.installed().startswith("checkout")
    assert sandbox.left() == [".venv-vllm-metal"]


def test_the_second_of_two_at_once_gives_way(sandbox):
    process = sandbox.start_hanging("pip sync")
    for arguments in ([], ["--uninstall"]):
        code, output = sandbox.run(*arguments)
        assert code == 1
        assert f"is under way (process {process.pid})" in output
    process.terminate()
    process.communicate(timeout=60)
    assert sandbox.left() == []


def test_uninstall_removes_all_of_it(sandbox):
    assert sandbox.run()[0] == 0
    (sandbox.home / "mine").touch()
    code, output = sandbox.run("--uninstall")
    assert code == 0
    assert "Removed" in output
    assert sandbox.left() == ["mine"]
    code, output = sandbox.run("--uninstall")
    assert code == 0
    assert "Nothing is installed" in output


def test_a_place_with_spaces(sandbox):
    place = sandbox.home / "my place" / "v"
    code, output = sandbox.run(VLLM_METAL_VENV=str(place))
    assert code == 0, output
    assert (place / "vllm-metal-install.txt").exists()
    assert r"source " in output
    assert r"my\ place" in output


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_a_dry_run_prints_and_changes_nothing(sandbox, piped, installed):
    sandbox.release("0.2.0", *WHOLE)
    if installed:
        assert sandbox.run()[0] == 0
    files = sorted(path for path in sandbox.home.rglob("*"))
    for arguments in (["--dry-run"], ["--dry-run", "--uninstall"]):
        code, output = sandbox.run(*arguments, piped=piped)
        assert code == 0, output
        assert sorted(path for path in sandbox.home.rglob("*")) == files
        assert "uv venv" not in sandbox.log
    code, output = sandbox.run("--dry-run", piped=piped)
    for command in ("venv --quiet", "pip sync", "--no-deps", "doctor", "mv "):
        assert command in output


# --- the script itself -------------------------------------------------------------------------


def test_half_a_download_does_nothing(sandbox):
    text = SCRIPT.read_text(encoding="utf-8")
    half = text[: text.rindex("main ")]
    sandbox.checkout.joinpath("install.sh").write_text(half)
    assert sandbox.run() == (0, "")
    assert sandbox.log == ""


def test_it_is_written_for_the_bash_of_macos():
    text = SCRIPT.read_text(encoding="utf-8")
    newer = r"mapfile|readarray|declare -A|local -n|\$\{\w+(,,|\^\^|@Q)|wait -n|&>>|coproc"
    not_on_a_mac = r"readlink -f|sed -i|(^|[ (])timeout \d|\bnproc\b|\bflock\b|/proc/"
    assert not re.search(f"{newer}|{not_on_a_mac}", text)


def test_versions_are_those_of_the_locks():
    uv = re.search(r"UV_VERSION=(\S+)", SCRIPT.read_text(encoding="utf-8"))[1]
    assert f"uv=={uv}" in (ROOT / "requirements" / "uv.in").read_text(encoding="utf-8")
    backend = (ROOT / "requirements" / "torch-backend.txt").read_text(encoding="utf-8")
    assert re.search("^numba==", backend, re.MULTILINE)
