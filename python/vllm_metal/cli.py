# SPDX-License-Identifier: Apache-2.0
"""The command `vllm-metal`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

# Name, module with add_arguments(parser) and run(args), help.
_COMMANDS = (
    ("doctor", "vllm_metal.doctor", "check the installation and say what is wrong with it"),
    (
        "selftest",
        "vllm_metal.selftest",
        "run kernels, models, memory and a short serve on this machine and report",
    ),
    ("env", "vllm_metal.env_command", "list the environment variables and their values"),
    (
        "import-gguf",
        "vllm_metal.import_gguf",
        "write a model directory from a GGUF file, bit for bit",
    ),
    (
        "convert",
        "vllm_metal.convert",
        "copy a model directory: quantised, dequantised, or with another data type",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, RuntimeError, OSError) as error:
        print(f"vllm-metal {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vllm-metal", description="Tools of vLLM Metal. To serve a model use `vllm serve`."
    )
    parser.add_argument("--version", action=_PrintVersion)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module_name, help_text in _COMMANDS:
        module = importlib.import_module(module_name)
        command = commands.add_parser(name, help=help_text, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


class _PrintVersion(argparse.Action):
    """Looks the version up only when asked."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(
            option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the version"
        )

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import vllm_metal

        print(f"vllm-metal {vllm_metal.__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
