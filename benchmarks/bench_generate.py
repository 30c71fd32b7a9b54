# SPDX-License-Identifier: Apache-2.0
"""Speed of one greedy request on the default model: our core, llama.cpp, mlx-lm.

  decode    tokens/s after the first token, from a short prompt
  prefill   tokens/s of a prompt of 512 tokens in one batch, until its first new token is known

Engines take turns, run by run, each in a process of its own. llama.cpp reads the GGUF file that
our model directory was imported from; it runs with flash attention and without, and the faster
of the two is the peer. mlx-lm needs seconds a token on a CPU: it has shorter and fewer runs.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import peers
from machine import Machine
from measure import Result, Row, arguments
from turns import Answer, Child, started, take_turns


@dataclass(frozen=True)
class Phase:
    """What is timed. The targets are ratios to llama.cpp and to mlx-lm."""

    name: str
    prompt_len: int
    new_tokens: int
    targets: dict[str, float]
    mlx_lm_lengths: tuple[int, int]
    mlx_lm_runs: int


PHASES = {
    "decode": Phase("decode", 32, 129, {"llama.cpp": 1, "mlx-lm": 8}, (32, 13), 3),
    "prefill": Phase("prefill", 512, 1, {"llama.cpp": 1, "mlx-lm": 15}, (64, 1), 2),
}


def prompt(length: int) -> list[int]:
    """Any ids do: the work does not depend on them."""
    return [1000 + 17 * i % 40000 for i in range(length)]


def request(prompt_len: int, new_tokens: int) -> dict:
    return {"prompt": prompt(prompt_len), "new_tokens": new_tokens}


def speeds(phase: str, name: str, answers: list[Answer]) -> list[float]:
    """Tokens/s of each run."""
    known = PHASES[phase]
    prompt_len, new_tokens = (
        known.mlx_lm_lengths if name == "mlx-lm" else (known.prompt_len, known.new_tokens)
    )
    count = prompt_len if phase == "prefill" else new_tokens - 1
    return [count / answer[phase] for answer in answers]


def measure(phase: Phase, children: dict[str, Child], num_runs: int) -> dict[str, list[Answer]]:
    requests = {name: request(phase.prompt_len, phase.new_tokens) for name in children}
    runs = dict.fromkeys(children, num_runs)
    requests["mlx-lm"] = request(*phase.mlx_lm_lengths)
    runs["mlx-lm"] = min(phase.mlx_lm_runs, num_runs)
    return take_turns(children, runs, requests)


def rows_of(phase: Phase, answers: dict[str, list[Answer]]) -> list[Row]:
    """Compare with the faster llama.cpp and with mlx-lm."""
    by_name = {name: speeds(phase.name, name, runs) for name, runs in answers.items()}
    what = "decode, batch 1, 4-bit" if phase.name == "decode" else f"prefill {phase.prompt_len}"
    llama = [name for name in by_name if name.startswith("llama.cpp")]
    best = sorted(llama, key=lambda name: statistics.median(by_name[name]))[-1:]
    rows = []
    for peer in [*best, "mlx-lm"]:
        target = phase.targets["mlx-lm" if peer == "mlx-lm" else "llama.cpp"]
        row = Row(what, "tokens/s", by_name["ours"], peer, by_name[peer], target=target)
        others = [f"{n} {statistics.median(by_name[n]):.1f}" for n in llama if n != peer]
        row.note = ", ".join(others) if peer in best else ""
        rows.append(row)
    return rows


def agreement(answers: dict[str, list[Answer]]) -> str:
    """How far greedy answers go together: near-ties part engines that round differently."""
    ours = answers["ours"][0]["token_ids"]
    parts = []
    for name, runs in answers.items():
        theirs = runs[0]["token_ids"]
        length = min(len(ours), len(theirs))
        same = next((i for i in range(length) if ours[i] != theirs[i]), length)
        if name != "ours":
            parts.append(f"{name} {same}/{length}")
    return "first tokens that are the same as ours: " + ", ".join(parts)


def main() -> int:
    parser = arguments(__doc__, runs=7)
    options = parser.parse_args()
    if options.quick:
        options.runs = 1
    from vllm_metal.default_model import ensure_default_gguf, ensure_default_model

    model, gguf = Path(ensure_default_model()), ensure_default_gguf()
    engines = [peers.ours(model), *peers.llama_cpp(gguf), peers.mlx_lm(model)]
    settings = {
        "runs": options.runs,
        **{f"{p.name} prompt/new": f"{p.prompt_len}/{p.new_tokens}" for p in PHASES.values()},
        **{
            f"mlx-lm {p.name} prompt/new/runs": f"{p.mlx_lm_lengths}/{p.mlx_lm_runs}"
            for p in PHASES.values()
        },
    }
    with started(engines, options.threads) as children:
        versions = {k: v for child in children.values() for k, v in child.versions.items()}
        result = Result(Path(__file__).name, Machine.here(options.threads), versions, settings)
        for phase in PHASES.values():
            answers = measure(phase, children, options.runs)
            result.rows += rows_of(phase, answers)
            if phase.name == "decode":
                result.notes.append(agreement(answers))
    if note := peers.missing("llama-cpp"):
        result.notes.append(note)
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
