# SPDX-License-Identifier: Apache-2.0
"""Compile the GPU kernels as far as that goes without Apple's compiler: `check_msl.py [FILE...]`.

clang's C++ for OpenCL has the address spaces of the Metal Shading Language. The kernels' text,
put together as for Metal and with every kernel that a host may ask for, is rewritten a little and
compiled against the declarations in tests/msl/include: types, templates, address spaces.
Attributes, buffer numbers, pointers without an address space and double are looked for in the
text. FILEs are compiled behind the prelude and kernel_arguments.h instead.
docs/metal_verification.md says what this does not show.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from checkout import ROOT

KERNELS = ROOT / "src" / "kernels" / "gpu"
SHIMS = ROOT / "tests" / "msl" / "include"
PRELUDE = KERNELS / "prelude_metal.h"

NAMES = ("kv_write", "rotary_kv_write", "add_rms_norm")
DTYPES = ("float", "half", "bfloat")
HEAD_DIMS = (64, 80, 96, 128, 192, 256)
DECODE_MAX_VALUES = 1024  # kDecodeMaxValues

OPENCL = ["-x", "clcpp", "-cl-std=clc++2021", "-target", "spir64", "-Xclang", "-cl-ext=+all"]
OPTIONS = ["-fsyntax-only", "-nostdinc", "-cl-no-stdinc", "-isystem", str(SHIMS), "-Werror"]
# OpenCL's language is C++17, Metal's is C++14 up to macOS 15.
OPTIONS += ["-Wpre-c++17-compat"]
# The null pointers that stand for threadgroup memory; functions that are declared only.
QUIET = ["-Wno-null-dereference", "-Wno-undefined-internal", "-Wno-c++20-extensions"]

ATTRIBUTES = {
    *("kernel", "host_name", "buffer", "max_total_threads_per_threadgroup"),
    *("thread_position_in_grid", "threadgroup_position_in_grid", "thread_position_in_threadgroup"),
    *("thread_index_in_threadgroup", "thread_index_in_simdgroup"),
    *("simdgroup_index_in_threadgroup", "threads_per_threadgroup", "threadgroups_per_grid"),
}
ATTRIBUTE = re.compile(r"\[\[\s*(\w+)[^\]]*\]\]")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
LEFT_OUT = re.compile(r'(?m)^\s*#\s*(pragma once|include\s*[<"][^\n]*)$')
KERNEL = re.compile(r"\bKERNEL\(\w+\)\s+(\w+)\s*\((.*?)\)\s*\{", re.DOTALL)
RAW_KERNEL = re.compile(r"\bvoid\s+(\w+)\s*\(([^{};]*)\)\s*\{", re.DOTALL)
BUFFER = re.compile(
    r"\b(?:DEVICE_BUFFER|ARGUMENTS)\([^()]*,\s*(\d+)\)|\[\[\s*buffer\((\d+)\)\s*\]\]"
)
# A type, then * or &, then a name: an address space is missing, unless a word for it comes first.
POINTER = re.compile(
    r"(?:\b(device|threadgroup|thread|constant)\s+)?(?:\bconst\s+)?"
    r"\b(?:float|int|uint|ushort|half|bfloat|char|T|Word|[A-Z][a-z]\w*(?:<[^<>;]*>)?)"
    r"\s*[*&]+\s*(\w+)\s*[=;,){]"
)
THREADGROUP_ARRAY = re.compile(r"\bthreadgroup\s+(\w+)\s+(\w+)\s*\[([^\]]*)\]")


def instantiations() -> list[str]:
    """A line for every kernel that a host may ask for."""
    kernels = [(name, dtype) for name in NAMES for dtype in DTYPES]
    kernels += [("copy_blocks", word) for word in ("uint4", "ushort")]
    for dtype in DTYPES:
        for size in HEAD_DIMS:
            kernels.append(("attention_merge", f"{dtype}, {size}"))
            for matrix in ("true", "false"):
                kernels.append(("attention_prefill", f"{dtype}, {size}, {matrix}"))
            for heads in (1, 2, 4, 8):
                if heads * size <= DECODE_MAX_VALUES:
                    kernels.append(("attention_decode", f"{dtype}, {size}, {heads}"))
    return [
        f'INSTANTIATE_KERNEL("{name}_{number}", {name}, {arguments})'
        for number, (name, arguments) in enumerate(kernels)
    ]


def without_comments(text: str) -> str:
    return COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def textual_errors(name: str, text: str) -> list[str]:
    """What is wrong with one source and no compiler of another language can know."""
    code = without_comments(text)
    errors = []

    def error(position: int, message: str) -> None:
        errors.append(f"{name}:{code.count(chr(10), 0, position) + 1}: error: {message}")

    for match in ATTRIBUTE.finditer(code):
        if match[1] not in ATTRIBUTES:
            error(match.start(), f"unknown attribute {match[1]}")
    for match in re.finditer(r"[^\x00-\x7f]", text):
        error(match.start(), "MLX hands the text to Metal as ASCII")
    for match in re.finditer(r"\bdouble\b", code):
        error(match.start(), "Metal has no double")
    for match in (*KERNEL.finditer(code), *RAW_KERNEL.finditer(code)):
        numbers = [first or second for first, second in BUFFER.findall(match[2])]
        if len(numbers) != len(set(numbers)):
            error(match.start(), f"{match[1]} uses a buffer index twice")
    for match in POINTER.finditer(code):
        if match[1] is None and not name.endswith("kernel_arguments.h"):
            error(match.start(), f"{match[2]} is a pointer or reference without an address space")
    return errors


def rewritten(text: str) -> str:
    """The text without what only Metal knows. Kernels become functions, which may be templates;
    arrays in threadgroup memory, which functions may not have, references to such arrays.
    """
    text = THREADGROUP_ARRAY.sub(r"threadgroup \1 (&\2)[\3] = *(threadgroup \1 (*)[\3])0", text)
    return ATTRIBUTE.sub("", text)


def assemble(files: list[Path], tail: list[str]) -> tuple[str, list[str]]:
    """One text of all files, and the place that each of its lines comes from."""
    lines: list[str] = []
    places: list[str] = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        kept = text.replace("#pragma once", "") if path == PRELUDE else LEFT_OUT.sub("", text)
        own = rewritten(kept).splitlines()
        lines += own
        places += [f"{shown(path)}:{number}" for number in range(1, len(own) + 1)]
    return "\n".join([*lines, *tail]) + "\n", places + ["instantiation"] * len(tail)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def front_end() -> list[str] | None:
    """A command that compiles the file named after it."""
    tidy = Path(sys.executable).parent / "clang-tidy"
    if tidy.exists():
        # A whole clang with one cheap check, as it wants at least one.
        return [str(tidy), "--quiet", "--checks=-*,misc-unused-alias-decls"]
    clang = shutil.which("clang")
    return None if clang is None else [clang]


def compile_text(command: list[str], text: str, places: list[str]) -> str:
    """What the compiler has against `text`, with the places of its lines; empty: nothing."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.clcpp"
        source.write_text(text, encoding="utf-8")
        options = [*OPENCL, *OPTIONS, *QUIET]
        if "clang-tidy" in command[0]:
            words = [*command, str(source), "--", *options]
        else:
            words = [*command, *options, str(source)]
        result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return ""
    line = re.compile(re.escape(str(source)) + r":(\d+)")
    return line.sub(lambda match: places[int(match[1]) - 1], result.stdout + result.stderr)


def check(files: list[Path], tail: list[str]) -> list[str]:
    errors = []
    for path in files:
        errors += textual_errors(shown(path), path.read_text(encoding="utf-8"))
    command = front_end()
    if command is None:
        print("check_msl: neither clang-tidy nor clang is here: only the text was looked at")
    elif output := compile_text(command, *assemble(files, tail)):
        errors.append(output)
    return errors


def kernel_files() -> list[Path]:
    names = (KERNELS / "sources.txt").read_text(encoding="utf-8").split()
    return [PRELUDE, *(KERNELS / name for name in names)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", type=Path, help="compile these instead")
    arguments = parser.parse_args()
    if arguments.files:
        own = [PRELUDE, KERNELS / "kernel_arguments.h"]
        errors = check([*own, *(path.resolve() for path in arguments.files)], [])
    else:
        files = kernel_files()
        errors = check(files, instantiations())
        print(f"check_msl: {len(files)} files, {len(instantiations())} kernels")
    print("\n".join(errors), end="")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
