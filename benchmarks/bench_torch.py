# SPDX-License-Identifier: Apache-2.0
"""The same model by our core and by transformers on torch: one greedy request.

torch computes on the GPU of a Mac (mps), elsewhere on the CPU, from the bfloat16 copy of our
4-bit model: in float32 and in bfloat16. Ours has the 4-bit weights and the copy's, which is like
against like, both with activations in bfloat16. The better of torch's two is the peer.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import peers
from bench_generate import BF16, Lengths
from machine import Machine
from measure import Result, Row, arguments
from turns import started, take_turns

DECODE, PREFILL = Lengths(32, 33, 5), Lengths(512, 1, 5)
DTYPES = ("float32", "bfloat16")


def main() -> int:
    options = arguments(__doc__, runs=DECODE.runs).parse_args()
    runs = 1 if options.quick else options.runs
    model, plain, _ = peers.default_model()
    engines = [
        peers.ours(model, dtype="bfloat16"),
        peers.ours(plain, BF16),
        *(peers.torch(plain, dtype) for dtype in DTYPES),
    ]
    phases = {"decode": replace(DECODE, runs=runs), "prefill": replace(PREFILL, runs=runs)}
    settings = {f"{name} (prompt + new x runs)": str(known) for name, known in phases.items()}
    with started(engines, options.threads) as children:
        versions = {k: v for child in children.values() for k, v in child.versions.items()}
        result = Result(Path(__file__).name, Machine.here(options.threads), versions, settings)
        for phase, lengths in phases.items():
            answers = take_turns(
                children,
                dict.fromkeys(children, runs),
                dict.fromkeys(children, lengths.request()),
            )
            count = lengths.new - 1 if phase == "decode" else lengths.prompt
            speeds = {name: [count / run[phase] for run in a] for name, a in answers.items()}
            result.rows += rows(phase, speeds)
    result.finish(options.json)
    return 0


def rows(phase: str, speeds: dict[str, list[float]]) -> list[Row]:
    medians = {name: statistics.median(runs) for name, runs in speeds.items()}
    best, other = sorted((n for n in speeds if n.startswith("torch")), key=lambda n: -medians[n])
    note = f"{other} {medians[other]:.1f}"
    return [
        Row(f"{phase}, {what}", "tokens/s", speeds[name], best, speeds[best], target=1, note=note)
        for name, what in (("ours", "4-bit"), (BF16, "bf16"))
    ]


if __name__ == "__main__":
    sys.exit(main())
