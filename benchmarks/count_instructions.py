# SPDX-License-Identifier: Apache-2.0
"""What the host pays for a step, in instructions: the same on every run, whatever the machine does.

A model so small that its arithmetic hardly counts, of 30 layers, decodes under callgrind with two
numbers of steps; the difference of the two counts is what the steps between cost, without start
and loading. Kernels are counted apart, and all runs on one thread of kernels. The count of the
rest is compared with benchmarks/instructions.json and may differ by a tenth.

    count_instructions.py            compare; exit status 1 if the host's count left its bounds
    count_instructions.py --update   write instructions.json
    count_instructions.py --top 25   and show the functions that cost most, alone and with callees
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = Path(__file__).with_name("instructions.json")
PROGRAM = Path(os.environ.get("VLLM_METAL_BUILD_DIR", ROOT / "build" / "release")) / (
    "tests/cpp/decode_steps"
)
BATCHES = (1, 32)
FEW_STEPS, MANY_STEPS = 10, 30
TOLERANCE = 0.1

# Compiled once for each instruction set: by namespace, or by the compiler's clones of a function.
KERNEL = re.compile(r"vllm_metal::cpu::(baseline|avx2|avx512)::|\.(avx2|avx512f|default)\.")
Function = tuple[str, str]  # name, library or program


@dataclass
class Profile:
    """Instructions of each function: of its own, and with those that it calls."""

    own: Counter[Function] = field(default_factory=Counter)
    inclusive: Counter[Function] = field(default_factory=Counter)

    def per_step(self, fewer: Profile) -> Profile:
        """Return what each step between two runs added."""

        def difference(many: Counter[Function], few: Counter[Function]) -> Counter[Function]:
            steps = MANY_STEPS - FEW_STEPS
            return Counter({name: round((many[name] - few[name]) / steps) for name in many | few})

        return Profile(difference(self.own, fewer.own), difference(self.inclusive, fewer.inclusive))


def parse(text: str) -> Profile:
    """Read callgrind's output, written without compressed names."""
    profile = Profile()
    function, library = ("", ""), ""
    callee_cost = False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "ob":
            library = Path(value).name
        elif key == "fn":
            function = (value, library)
        elif key == "calls":
            callee_cost = True
        elif line[:1].isdigit() and function[0]:
            cost = int(line.split()[1])
            if not callee_cost:
                profile.own[function] += cost
            profile.inclusive[function] += cost
            callee_cost = False
    return profile


def run(batch: int, steps: int) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "callgrind.out"
        options = ["--compress-strings=no", "--compress-pos=no", "--dump-line=no"]
        command = ["valgrind", "--tool=callgrind", *options, f"--callgrind-out-file={output}"]
        command += [str(PROGRAM), str(batch), str(steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
        return parse(output.read_text(encoding="utf-8"))


def group_of(function: Function) -> str:
    name, library = function
    if KERNEL.search(name):
        return "kernels"
    if library.startswith("libmlx"):
        return "mlx"
    return "core" if library == PROGRAM.name else "system"


def grouped(profile: Profile) -> dict[str, int]:
    """Sum up instructions of kernels, and of the host by whose code they are."""
    groups: Counter[str] = Counter()
    for function, cost in profile.own.items():
        groups[group_of(function)] += cost
    host = sum(groups.values()) - groups["kernels"]
    return {"host": host, **{name: groups[name] for name in ("core", "mlx", "system", "kernels")}}


def print_top(profile: Profile, count: int) -> None:
    for title, costs in (("own", profile.own), ("with callees", profile.inclusive)):
        print(f"  {title}:")
        host = [function for function in costs if group_of(function) != "kernels"]
        for function in sorted(host, key=lambda f: -costs[f])[:count]:
            print(f"  {costs[function]:12,}  {function[0][:110]} [{function[1]}]")


def within_bounds(counts: dict[str, dict[str, int]]) -> bool:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    good = True
    for batch, groups in counts.items():
        expected = record[batch]["host"]
        change = groups["host"] / expected - 1
        print(f"batch {batch}: {groups['host']:,} for {expected:,} on record, {change:+.1%}")
        good = good and abs(change) <= TOLERANCE
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--top", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: apt install valgrind")
    if not PROGRAM.exists():
        sys.exit(f"{PROGRAM} is not there: make setup builds it")
    counts = {}
    for batch in BATCHES:
        profile = run(batch, MANY_STEPS).per_step(run(batch, FEW_STEPS))
        groups = counts[str(batch)] = grouped(profile)
        print(f"batch {batch}, a step:", ", ".join(f"{n} {c:,}" for n, c in groups.items()))
        if arguments.top:
            print_top(profile, arguments.top)
    if arguments.update:
        RECORD.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
        return 0
    return 0 if within_bounds(counts) else 1


if __name__ == "__main__":
    sys.exit(main())
