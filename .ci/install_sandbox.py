# SPDX-License-Identifier: Apache-2.0
"""A machine for tests of install.sh: a home, a PATH of fakes, a web of releases.

PATH holds the fakes below and links to the tools that macOS and Linux both have, no others, so that
a command that a Mac lacks is not found here either. Fakes note their command lines in `log`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "install.sh"
REPOSITORY = "https://example.test/owner/name"
MAC_WHEEL = "vllm_metal-0.2.0-cp312-abi3-macosx_14_0_arm64.whl"
MAC_311 = "vllm_metal-0.2.0-cp311-cp311-macosx_14_0_arm64.whl"
LINUX_WHEEL = "vllm_metal-0.2.0-cp312-cp312-manylinux_2_35_x86_64.whl"
VLLM = "vllm-0.32.0+empty-py3-none-any.whl"
LOCKS = ("serve.txt", "torch-backend.txt")
WHOLE = (MAC_WHEEL, MAC_311, LINUX_WHEEL, VLLM, *LOCKS)

# Not a tool of the system's: macOS and Linux do not have the same.
SHA256 = "import hashlib, sys; print(hashlib.sha256(open(sys.argv[3], 'rb').read()).hexdigest())"

TOOLS = (
    "bash", "sh", "env", "awk", "cat", "cp", "cut", "dirname", "grep", "gzip", "head", "kill",
    "ln", "ls", "mkdir", "mv", "ps", "readlink", "rm", "sleep", "sort", "tar", "touch",
)  # fmt: skip

FAKES = {
    "uname": '[ "$1" = -m ] && echo "$FAKE_MACHINE" || echo "$FAKE_SYSTEM"',
    "sw_vers": 'echo "$FAKE_MACOS"',
    "sysctl": '[ -n "$FAKE_ROSETTA" ] && echo 1',
    "getconf": 'echo "glibc $FAKE_GLIBC"',
    "xcode-select": 'exit "$FAKE_XCODE"',
    "c++": "exit 0",
    "nvidia-smi": '[ -n "$FAKE_DRIVER" ] && echo "$FAKE_DRIVER"',
    "shasum": f'exec "{sys.executable}" -S -c "{SHA256}" "$@"',
    # Of sed only what BSD's understands as GNU's does.
    "sed": f"""
        [ "$1" = -n ] && exec "{shutil.which("sed")}" "$@"
        echo "sed: illegal option" >&2; exit 1
    """,
    "df": """
        echo 'Filesystem 1024-blocks Used Available Capacity Mounted on'
        echo "map auto home 900000000 1000 $FAKE_FREE_KB 1% /"
    """,
    "python3.12": """
        case "$*" in
          *platform.machine*) echo "$FAKE_PYTHON_MACHINE" ;;
          *version_info*) echo "$FAKE_PYTHON_TAG" ;;
          *--check*) exit "$FAKE_CHECK" ;;
          *build_wheels.py*)
            echo "build ${*: -1}" >>"$FAKE_LOG"
            while [ "$1" != --out ]; do shift; done
            touch "$2/$3-0-py3-none-any.whl" ;;
        esac
    """,
    "uv": """
        echo "uv $*" >>"$FAKE_LOG"
        case "$*" in *"${FAKE_FAIL:-no such command}"*) exit 1 ;; esac
        case "$*" in
          *"${FAKE_HANG:-no such command}"*) echo $$ >"$FAKE_LOG.hanging"; sleep 60 ;;
        esac
        for last; do :; done
        case "$*" in
          --version) echo "uv $FAKE_UV (fake)" ;;
          "python find --managed"*) exit 1 ;;
          "python find"*) [ "$FAKE_PYTHON" = yes ] && echo "$FAKE_BIN/python3.12" || exit 1 ;;
          venv*)
            mkdir -p "$last/bin"
            echo 'relocatable = true' >"$last/pyvenv.cfg"
            cp "$FAKE_BIN/python3.12" "$last/bin/python" ;;
          *--no-deps*)
            env=${5%/bin/python}
            printf '#!/bin/sh\\necho doctor >>"%s"\\nexit %s\\n' "$FAKE_LOG" "$FAKE_DOCTOR" \\
              >"$env/bin/vllm-metal"
            /bin/chmod +x "$env/bin/vllm-metal"
            for file; do
              case $file in *.whl) echo "wheel ${file##*/}" >>"$FAKE_LOG" ;; esac
            done ;;
        esac
    """,
    # Serves the folder FAKE_WEB; understands the options that install.sh gives.
    "curl": """
        url=${*: -1} out=/dev/stdout fails=no write=
        while [ $# -gt 1 ]; do
          case $1 in -o) out=$2; shift ;; -w) write=$2; shift ;; -*f*) fails=yes ;; esac
          shift
        done
        echo "curl $url" >>"$FAKE_LOG"
        [ "$FAKE_NETWORK" = yes ] || exit 6
        file=$FAKE_WEB/${url#*://}
        if [ "${url##*/}" = latest ] && [ -f "$file" ]; then cat "$file"; exit; fi
        if [ -f "$file" ]; then cat "$file" >"$out"; status=200; else status=404; fi
        [ "$status$fails" != 404yes ] || exit 22
        [ -z "$write" ] || printf '\\n%s' "$status"
    """,
}  # fmt: skip

FACTS = {
    "FAKE_SYSTEM": "Linux", "FAKE_MACHINE": "x86_64", "FAKE_GLIBC": "2.36", "FAKE_MACOS": "",
    "FAKE_ROSETTA": "", "FAKE_XCODE": "0", "FAKE_DRIVER": "", "FAKE_FREE_KB": "99000000",
    "FAKE_UV": "0.13.9", "FAKE_PYTHON": "yes", "FAKE_PYTHON_TAG": "312", "FAKE_CHECK": "0",
    "FAKE_PYTHON_MACHINE": "arm64", "FAKE_DOCTOR": "0", "FAKE_NETWORK": "yes",
}  # fmt: skip


def mac(version: str, **facts: str) -> dict[str, str]:
    return {"FAKE_SYSTEM": "Darwin", "FAKE_MACHINE": "arm64", "FAKE_MACOS": version, **facts}


def heed_hangups() -> None:
    """Under nohup they are ignored, and a shell cannot trap what it was started to ignore."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Sandbox:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home, self.bin, self.web = (folder / name for name in ("home", "bin", "web"))
        self.checkout, self.log_file = folder / "checkout", folder / "log"
        for path in (self.home, self.bin, self.web, self.checkout / "scripts"):
            path.mkdir(parents=True)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/bin/{tool}")
        if bash := os.environ.get("INSTALL_TEST_BASH"):  # bash 3.2, where somebody has built one
            (self.bin / "bash").unlink()
            (self.bin / "bash").symlink_to(bash)
        for name, text in FAKES.items():
            path = self.bin / name
            path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            path.chmod(0o755)
        shutil.copy(SCRIPT, self.checkout)
        (self.checkout / "scripts" / "build_wheels.py").touch()
        self.venv = self.home / ".venv-vllm-metal"

    # --- what is there ---------------------------------------------------------------------

    def release(self, version: str, *names: str, latest: bool = True) -> Path:
        """A release with these files and their checksums; returns its folder."""
        releases = self.web / REPOSITORY.split("://")[1] / "releases"
        folder = releases / "download" / f"v{version}"
        folder.mkdir(parents=True)
        sums = []
        for name in names:
            (folder / name).write_text(name)
            sums.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n")
        (folder / "SHA256SUMS").write_text("".join(sums))
        if latest:
            (releases / "latest").write_text(f"{REPOSITORY}/releases/tag/v{version}")
        return folder

    def tag(self, version: str) -> None:
        """What GitHub makes of a tag: an archive with one folder of the source in it."""
        archive = self.web / REPOSITORY.split("://")[1] / "archive/refs/tags" / f"v{version}.tar.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-czf", archive, "-C", self.folder, "checkout"], check=True)

    def installed(self) -> str:
        """What the environment was made from; '' if there is none."""
        marker = self.venv / "vllm-metal-install.txt"
        return marker.read_text() if marker.exists() else ""

    def left(self) -> list[str]:
        return sorted(path.name for path in self.home.iterdir())

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    # --- runs ------------------------------------------------------------------------------

    def start(self, *arguments: str, piped: bool = False, **facts: str) -> subprocess.Popen[str]:
        environment = {
            **FACTS, **facts, "HOME": str(self.home), "PATH": str(self.bin), "LC_ALL": "C",
            "FAKE_LOG": str(self.log_file), "FAKE_BIN": str(self.bin), "FAKE_WEB": str(self.web),
        }  # fmt: skip
        environment.setdefault("VLLM_METAL_REPOSITORY", REPOSITORY)
        script = ["-s", "--"] if piped else ["install.sh"]
        with SCRIPT.open(encoding="utf-8") as text:
            return subprocess.Popen(
                [str(self.bin / "bash"), *script, *arguments],
                stdin=text if piped else subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, env=environment,
                cwd=self.home if piped else self.checkout, start_new_session=True,
                preexec_fn=heed_hangups,  # noqa: PLW1509, the tests have one thread
            )  # fmt: skip

    def run(self, *arguments: str, piped: bool = False, **facts: str) -> tuple[int, str]:
        """Exit code and output; the log holds this run's commands only."""
        self.log_file.unlink(missing_ok=True)
        process = self.start(*arguments, piped=piped, **facts)
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def start_hanging(self, where: str, **options: object) -> subprocess.Popen[str]:
        """A run that is stuck in a command of uv."""
        hanging = self.log_file.with_name("log.hanging")
        hanging.unlink(missing_ok=True)
        process = self.start(FAKE_HANG=where, **options)  # type: ignore[arg-type]
        deadline = time.monotonic() + 20
        while not hanging.exists() or not hanging.read_text():
            assert time.monotonic() < deadline, "the run never came to " + where
            time.sleep(0.01)
        return process

    def hanging_process_lives(self) -> bool:
        process = int(self.log_file.with_name("log.hanging").read_text())
        try:
            return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def end_hanging(self) -> None:
        os.killpg(int(self.log_file.with_name("log.hanging").read_text()), signal.SIGKILL)
