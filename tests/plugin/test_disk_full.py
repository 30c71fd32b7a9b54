# SPDX-License-Identifier: Apache-2.0
"""A disk that fills up at any point of an import or a conversion: an error, and nothing is left."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
from vllm_metal import cli
from vllm_metal.import_gguf import import_gguf

from tests.plugin.tiny_gguf import write_tiny_gguf

NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")  # whose mounts nobody else sees

# Makes a directory in disks that are too small by the last file, by the one before, …, and in one
# that has just enough pages. Prints the exit codes and what was left by the size of the disk.
MAKE_IN_SMALL_DISKS = """
import json
import shutil
import subprocess
import sys
from pathlib import Path

from vllm_metal import cli, convert, import_gguf

PAGE = 4096
disk, *command = sys.argv[1:]
target = Path(disk) / "models" / "made"
# As if the space had gone meanwhile: else all is refused before it begins.
convert.check_free_disk = import_gguf.check_free_disk = lambda *_: None


def make(pages, how="remount,"):
    options = ["-t", "tmpfs", "-o", f"{how}size={pages * PAGE}"]
    subprocess.run(["mount", *options, "disk", disk], check=True)
    code = cli.main([*command, str(target)])
    return pages, code, sorted(path.name for path in target.parent.iterdir())


make(1000, how="")
pages = sum(-(-file.stat().st_size // PAGE) for file in target.iterdir())
shutil.rmtree(target)
sizes = [1, pages // 2, *range(pages - 12, pages + 1)]
print(json.dumps([make(size) for size in sizes]))
"""


@pytest.fixture
def gguf_file(tmp_path):
    return write_tiny_gguf(tmp_path / "x.gguf")


@pytest.fixture
def command(request, tmp_path, gguf_file):
    """Return the arguments of a command, but for the directory that it makes."""
    if request.param == "import-gguf":
        return ["import-gguf", str(gguf_file)]
    return ["convert", str(import_gguf(gguf_file, tmp_path / "model"))]


both_commands = pytest.mark.parametrize("command", ["import-gguf", "convert"], indirect=True)


def may_mount() -> bool:
    """Whether a disk of our own can be had."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    trial = [*NAMESPACE, "mount", "-t", "tmpfs", "disk", "/mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


@both_commands
def test_a_disk_that_fills_up(tmp_path, command):
    """Wherever that happens: in the weights, in the small files, in the manifest."""
    if not may_mount():
        pytest.skip("needs a mount of its own")
    disk = tmp_path / "disk"
    disk.mkdir()
    result = subprocess.run(
        [*NAMESPACE, sys.executable, "-c", MAKE_IN_SMALL_DISKS, str(disk), *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *failed, enough = json.loads(result.stdout.splitlines()[-1])
    assert enough[1:] == [0, ["made"]]
    assert all(made[1:] == [1, []] for made in failed), failed
    errors = result.stderr.splitlines()
    assert len(errors) == len(failed), errors
    for error in errors:
        assert error.startswith(f"vllm-metal {command[0]}: ")
        assert "No space left on device" in error
        assert str(disk) in error  # the place is named


@both_commands
def test_a_file_that_may_not_grow(tmp_path, command, capsys):
    """The process goes on: it is not ended by the signal that says so."""
    target = tmp_path / "models" / "made"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        assert cli.main([*command, str(target)]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heard)
    assert "File too large" in capsys.readouterr().err
    assert list(target.parent.iterdir()) == []
    assert cli.main([*command, str(target)]) == 0
