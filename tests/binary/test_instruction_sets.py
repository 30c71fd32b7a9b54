# SPDX-License-Identifier: Apache-2.0
"""Newer instructions are only where they are chosen at run time: any processor runs the rest."""

import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator

import pytest
from build_folder import BUILD, built

FUNCTION = re.compile(r"^[0-9a-f]+ <(.+)>:$")
# AVX and later, whatever the width of the registers: their encodings, and so their names, are new.
NEWER_INSTRUCTION = re.compile(r"\t(?:v[a-z]|k(?:mov|and|x?or|x?nor|not|unpck|test|add|shift))")
# By cpu/isa.h: the kernels' namespaces. By the loader: what the compiler clones (target_clones).
CHOSEN_AT_RUN_TIME = re.compile(r"3cpu(?:4avx2|6avx512|11avx512_bf16)|\.(?:avx2|avx512f)(?:\.|$)")

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None,
    reason="needs objdump and x86-64",
)


def newer_functions(disassembly: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Functions that need a newer processor, and the first instruction that does."""
    name, reported = "", False
    for line in disassembly:
        if match := FUNCTION.match(line):
            name, reported = match[1], False
        elif not reported and NEWER_INSTRUCTION.search(line):
            reported = True
            yield name, line.strip()


def disassembly(library: str) -> list[str]:
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(BUILD / library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_newer_instructions_are_told_apart():
    lines = """
0000000000000000 <_ZN10vllm_metal4plain>:
   0:\tmovaps %xmm0,%xmm1
   3:\taddps  %xmm0,%xmm1
0000000000000010 <_ZN10vllm_metal3cpu4avx212_GLOBAL__N_13runE>:
  10:\tvmovaps %ymm0,%ymm1
0000000000000020 <_ZSt3maxIfERKT_S2_S2_>:
  20:\tvmaxss %xmm0,%xmm1,%xmm1
  24:\tkmovw  %eax,%k1
""".splitlines()
    assert [name for name, _ in newer_functions(lines)] == [
        "_ZN10vllm_metal3cpu4avx212_GLOBAL__N_13runE",
        "_ZSt3maxIfERKT_S2_S2_",
    ]


def test_newer_instructions_are_only_where_they_are_chosen():
    built("libvllm_metal_kernels.a")
    found = {}
    for library in sorted(path.name for path in BUILD.glob("libvllm_metal_*.a")):
        found[library] = list(newer_functions(disassembly(library)))
    # The kernels have them: what is looked for can be found.
    assert len(found["libvllm_metal_kernels.a"]) > 50
    unexpected = [
        f"{library}: {function}: {instruction}"
        for library, functions in found.items()
        for function, instruction in functions
        if not CHOSEN_AT_RUN_TIME.search(function)
    ]
    assert unexpected == []
