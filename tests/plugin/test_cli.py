# SPDX-License-Identifier: Apache-2.0
import pytest
import vllm_metal
from vllm_metal import cli, doctor


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"vllm-metal {vllm_metal.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["doctor", "--help"],
        ["selftest", "--help"],
        ["import-gguf", "--help"],
        ["convert", "--help"],
    ],
)
def test_help(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 0
    assert "usage: vllm-metal" in capsys.readouterr().out


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_errors_are_one_line_without_a_traceback(capsys, monkeypatch):
    def fail(args):
        raise ValueError("the file is truncated")

    monkeypatch.setattr(doctor, "run", fail)
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().err == "vllm-metal doctor: the file is truncated\n"
