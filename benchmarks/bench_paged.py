# SPDX-License-Identifier: Apache-2.0
"""Attention and writes of the paged KV cache, a layer of a decode step, against other ways.

Times `build/release/benchmarks/cpp/paged_attention`, which it builds first: one new token for each
request, bfloat16, blocks in random order.

  attention   µs a layer, blocks of 16 tokens: against the contiguous cache, and against gathering
              the blocks for MLX's own attention
  bandwidth   keys and values read a second: against this machine's memory reads in the same run;
              only where a layer's cache is larger than what stays near the cores
  write       µs a layer, against the contiguous cache
  pool        µs of a step that writes and reads eight tokens, two steps in flight, in the largest
              pool: against the smallest
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import peers
from machine import Machine
from measure import ROOT, Result, Row, arguments

BUILD = ROOT / "build" / "release"
PROGRAM = BUILD / "benchmarks" / "cpp" / "paged_attention"
BLOCK_SIZE = 16
LARGE_BYTES = 16 << 20  # of a layer's keys and values
BANDWIDTH_TARGET = 0.6
FLAT = 0.5  # a step in the largest pool may take twice the smallest's, for its page faults


def build() -> None:
    cmake = Path(sys.executable).with_name("cmake")
    subprocess.run(
        [cmake, "--build", BUILD, "--target", PROGRAM.name],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run(options: list[str], threads: int) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    output = subprocess.run(
        [PROGRAM, *options], check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout
    return json.loads(output)


def attention_rows(timed: list[dict]) -> list[Row]:
    """Rows of one shape, batch and length."""
    by_layout = {(row["layout"], row["block_size"]): row for row in timed}
    paged = by_layout["paged", BLOCK_SIZE]
    contiguous = by_layout["contiguous", 0]
    heads = f"{paged['num_heads']}/{paged['num_kv_heads']} x {paged['head_dim']}"
    case = f"{heads}, batch {paged['batch']}, {paged['context_len']} tokens"

    def row(what: str, key: str, peer: str, theirs: dict, target: float | None = None) -> Row:
        return Row(
            f"{case}, {what}",
            "us",
            [paged[key]],
            peer,
            [theirs[key]],
            higher_is_better=False,
            target=target,
        )

    rows = [
        row("attention", "attention_us", "contiguous", contiguous),
        row("attention", "attention_us", "gather", by_layout["gather", BLOCK_SIZE], 1),
        row("write", "write_us", "contiguous", contiguous),
    ]
    elements = paged["batch"] * paged["context_len"] * paged["num_kv_heads"] * paged["head_dim"]
    if elements * 4 >= LARGE_BYTES:
        rows.append(
            Row(
                f"{case}, bandwidth",
                "GB/s",
                [paged["attention_gb_per_s"]],
                "memory reads",
                [paged["memory_read_gb_per_s"]],
                target=BANDWIDTH_TARGET,
            )
        )
    return rows


def pool_row(pools: list[dict]) -> Row:
    smallest, largest = pools[0], pools[-1]
    return Row(
        f"step in a pool of {largest['pool_mb']} MB",
        "us",
        [largest["step_us"]],
        f"at {smallest['pool_mb']} MB",
        [smallest["step_us"]],
        higher_is_better=False,
        target=FLAT,
    )


def main() -> int:
    parser = arguments(__doc__, runs=7)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    options = parser.parse_args()
    build()
    program_options = ["--device", options.device, "--turns", str(options.runs)]
    program_options += ["--quick"] if options.quick else []
    timed = run(program_options, options.threads)
    result = Result(
        Path(__file__).name,
        Machine.here(options.threads),
        peers.versions("vllm-metal", "mlx"),
        {"turns": timed["turns"], "dtype": timed["dtype"], "device": timed["device"]},
    )
    attention = timed["attention"]
    layouts = 4  # of each case, one after the other
    for begin in range(0, len(attention), layouts):
        result.rows += attention_rows(attention[begin : begin + layouts])
    result.rows.append(pool_row(timed["write_by_pool"]))
    result.notes += [
        f"pool of {row['pool_mb']} MB: {row['step_us']:.1f} us a step"
        + (
            f", with MLX's slice_update {row['slice_update_step_us']:.0f}"
            if "slice_update_step_us" in row
            else ""
        )
        for row in timed["write_by_pool"]
    ]
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
