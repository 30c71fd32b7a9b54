# SPDX-License-Identifier: Apache-2.0
"""List the environment variables: value, default, whether it is set, meaning.

The exit code is 1 when one has a value that is not allowed; the message names it.
"""

import argparse
import json
from typing import Any

from vllm_metal import envs

_HEADER = ("variable", "value", "default", "set", "meaning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vllm-metal env`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a JSON list")
    form.add_argument(
        "--markdown", action="store_true", help="print the table of docs/configuration.md"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table. ValueError where a value is not allowed."""
    rows = envs.table()
    if args.json:
        print(json.dumps(rows, indent=2))
    elif args.markdown:
        print("\n".join(markdown(rows)))
    else:
        print("\n".join(_aligned([_HEADER, *(_cells(row) for row in rows)])))
    return 0


def markdown(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of the table in the documentation: what does not depend on this environment."""
    return [
        "| variable | default | meaning |",
        "|---|---|---|",
        *(f"| `{row['name']}` | {_code(row['default'])} | {row['meaning']} |" for row in rows),
    ]


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    is_set = "yes" if row["is_set"] else "no"
    return (row["name"], row["value"] or "-", row["default"] or "-", is_set, row["meaning"])


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    ]
