# SPDX-License-Identifier: Apache-2.0
"""The two modes of the KV cache under `vllm serve`: paged and MLX-managed, with as much memory.

Prompts are 640 random ids, answers 128 tokens. Where prefixes are shared, the first 512 ids of all
prompts are the same: the paged cache keeps them once and computes them once, the MLX-managed one
for each request. Both servers run at once and take turns; a run is one request of each client.

  output         tokens of all clients a second, from the first request to the last token
  first token    from sending until a request's first token; median of the clients
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import load
import peers
import servers
from bench_serve import Figures, figures
from machine import Machine
from measure import Result, Row, arguments

PROMPT_LEN, SHARED_LEN, NEW_TOKENS = 640, 512, 128
MODES = {"paged": True, "MLX-managed": False}
# At the least: of the paged cache's output to the other's.
TARGETS = {"own prefixes": 0.95, "shared prefixes": 1.3}


def measure(
    running: dict[str, servers.Server], wave: load.Load, runs: int, first_seed: int
) -> dict[str, Figures]:
    """Runs of one load."""

    def run(server: servers.Server, number: int) -> dict[str, float]:
        return figures(load.drive(server.url, servers.MODEL, wave, seed=first_seed + number))

    return servers.in_turns(running, runs, run)


def rows(what: str, measured: dict[str, Figures], target: float) -> list[Row]:
    paged, managed = (measured[mode] for mode in MODES)
    output = Row(
        f"{what}, output",
        "tokens/s",
        paged["output"],
        "MLX-managed",
        managed["output"],
        target=target,
    )
    first = Row(f"{what}, first token", "ms", paged["first"], "MLX-managed", managed["first"])
    first.higher_is_better = False
    return [output, first]


def main() -> int:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    model, _, _ = peers.default_model()
    lengths = ("--max-model-len", str(PROMPT_LEN + NEW_TOKENS))
    result = Result(
        Path(__file__).name,
        Machine.here(options.threads),
        peers.versions("vllm-metal", "mlx", "vllm"),
        {"runs": runs, "prompt": PROMPT_LEN, "shared": SHARED_LEN, "new tokens": NEW_TOKENS},
    )
    with ExitStack() as stack:
        running = {
            mode: stack.enter_context(
                servers.ours(model, options.threads, "--dtype", "bfloat16", *lengths, paged=paged)
            )
            for mode, paged in MODES.items()
        }
        for number, count in enumerate(options.clients):
            for prefixes, target in TARGETS.items():
                shared_len = SHARED_LEN if prefixes == "shared prefixes" else 0
                wave = load.Load(count, PROMPT_LEN, NEW_TOKENS, shared_len)
                measured = measure(running, wave, runs, first_seed=1000 * number)
                result.rows += rows(f"{count} clients, {prefixes}", measured, target)
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
