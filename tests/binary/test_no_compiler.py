# SPDX-License-Identifier: Apache-2.0
"""Nothing is compiled while the program runs: mx::compile would run g++ on the CPU."""

import os
import stat
import subprocess

from build_folder import built


def test_steps_run_no_compiler(tmp_path):
    program = built("tests/cpp/decode_steps")
    called = tmp_path / "called"
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("g++", "gcc", "c++", "cc", "clang", "clang++", "xcrun"):
        compiler = folder / name
        compiler.write_text(f"#!/bin/sh\necho {name} >>{called}\nexit 1\n")
        compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "PATH": str(folder)}
    for batch in ("1", "3"):
        result = subprocess.run(
            [program, batch, "2"], env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    assert not called.exists(), called.read_text()
