# SPDX-License-Identifier: Apache-2.0
"""Test this machine: kernels, models, memory, a short serve; the report is for bugs, too.

Each group of checks runs in a process of its own, so that one which crashes or hangs is a failure
like others. The exit code is 0 when nothing failed.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vllm_metal.selftest.checks import FAILED, Options, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vllm-metal selftest`."""
    parser.add_argument("--quick", action="store_true", help="a minute or two instead of several")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        default=[],
        help="checks, by name, its beginning, or a pattern: kernels/cpu '*/float16'",
    )
    parser.add_argument("--list", action="store_true", help="list the checks, run none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    parser.add_argument("--text", type=Path, metavar="FILE", help="likewise, for people")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="serve this model, not the default one"
    )
    parser.add_argument("--no-serve", action="store_true", help="leave out `vllm serve`")
    parser.add_argument(
        "--offline", action="store_true", help="fetch nothing; the default model if it is there"
    )
    parser.add_argument(
        "--pool-limit",
        type=_size,
        metavar="SIZE",
        help="of the largest KV cache that is written, such as 512M or 8G (default: a quarter of "
        "the free memory, at most 16G)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the checks and report; returns the exit code."""
    from vllm_metal.selftest.groups import wanted_groups

    groups = wanted_groups(args.only)
    if args.model is not None and not (args.model / "config.json").is_file():
        raise ValueError(f"[selftest] --model {args.model} must be a directory with a config.json.")
    for file in filter(None, (args.json, args.text)):
        if not file.absolute().parent.is_dir():  # found out before minutes of tests
            raise ValueError(f"[selftest] {file} must be in a folder that exists.")
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="vllm-metal-selftest-") as work:
        options = Options(
            work=work,
            quick=args.quick,
            offline=args.offline,
            serve=not args.no_serve,
            model=str(args.model.resolve()) if args.model else None,
            pool_limit=args.pool_limit,
            why_no_gpu=_why_no_gpu(),
        )
        if args.list:
            return _list(groups, options, args.only)
        return _run(groups, options, args)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end what was started, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _size(value: str) -> int:
    """Return bytes: a number with K, M or G behind it, or without."""
    units = {"K": 10, "M": 20, "G": 30}
    digits, unit = (value[:-1], value[-1].upper()) if value[-1:].upper() in units else (value, "")
    if not digits.isdigit() or (size := int(digits) << units.get(unit, 0)) < 1 << 20:
        raise argparse.ArgumentTypeError(f"{value} must be a size of at least 1M, such as 8G")
    return size


def _why_no_gpu() -> str | None:
    """Return a reason to leave the GPU alone that the user gave."""
    return "VLLM_MLX_DEVICE is cpu" if os.environ.get("VLLM_MLX_DEVICE") == "cpu" else None


def _list(groups: list, options: Options, patterns: list[str]) -> int:
    from vllm_metal.selftest.supervisor import GroupRun

    for group in groups:
        print(f"{group.name}: {group.help}")
        for name in GroupRun(group, options, patterns, lambda _: None).list_names():
            print(f"  {name}")
    return 0


def _run(groups: list, options: Options, args: argparse.Namespace) -> int:
    from vllm_metal.selftest.facts import platform_facts
    from vllm_metal.selftest.groups import GROUPS
    from vllm_metal.selftest.progress import Progress
    from vllm_metal.selftest.report import Report
    from vllm_metal.selftest.supervisor import GroupRun

    asked = {"quick": args.quick, "only": args.only, "offline": args.offline}
    report = Report(platform_facts(), asked | {"model": args.model and args.model.name})
    GroupRun(GROUPS[0], options, ["platform/device"], report.note_device).run()
    progress = Progress(sys.stdout)
    start = time.monotonic()

    def take(result: Result) -> None:
        report.results.append(result)
        progress.finished(result)

    for group in groups:
        progress.group(group)
        GroupRun(group, options, args.only, take, progress.started).run()
    if not report.results:
        take(Result("selftest", FAILED, f"--only {' '.join(args.only)} means no check; see --list"))
    report.seconds = time.monotonic() - start
    progress.end()
    print(report.text(every_check=False))
    if args.json:
        args.json.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    if args.text:
        args.text.write_text(report.text(every_check=True) + "\n", encoding="utf-8")
    return 0 if report.passed else 1
