# SPDX-License-Identifier: Apache-2.0
"""Text stubs (.tbd) that stand for libraries of macOS when linking: what they export.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LIBSYSTEM = "/usr/lib/libSystem.B.dylib"
LIBCXX = "/usr/lib/libc++.1.dylib"
LIBOBJC = "/usr/lib/libobjc.A.dylib"
# All of the Objective-C runtime that metal-cpp's headers use.
LIBOBJC_NAMES = {"_objc_msgSend", "_objc_lookUpClass", "_objc_getProtocol", "_sel_registerName"}

# System libraries list their names for arm64e, which is what they are built as.
ARM = {"arm64-macos", "arm64e-macos"}
# "- targets: [ … ]" and the lists below it, until the next "- targets".
ENTRY = re.compile(r"-\s+targets:\s*\[([^\]]*)\](.*?)(?=-\s+targets:|\Z)", re.DOTALL)
LISTS = re.compile(r"\b(?:symbols|weak-symbols|thread-local-symbols):\s*\[([^\]]*)\]")


def items(text: str) -> Iterator[str]:
    for item in text.split(","):
        if name := item.strip().strip("'\""):
            yield name


def exported_names(stub: str) -> set[str]:
    """All names that a stub (format 4), with the libraries it re-exports, has for arm64."""
    names: set[str] = set()
    for document in stub.split("--- !tapi-tbd")[1:]:
        for targets, lists in ENTRY.findall(document):
            if ARM & set(items(targets)):
                names.update(*(items(one) for one in LISTS.findall(lists)))
    return names


def stub(install_name: str, names: Iterable[str]) -> str:
    """The text of a stub for arm64."""
    listed = ",\n               ".join(f"'{name}'" for name in sorted(names))
    return (
        "--- !tapi-tbd\n"
        "tbd-version: 4\n"
        "targets: [ arm64-macos ]\n"
        f"install-name: '{install_name}'\n"
        "exports:\n"
        "  - targets: [ arm64-macos ]\n"
        f"    symbols: [ {listed} ]\n"
        "...\n"
    )
