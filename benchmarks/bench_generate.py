# SPDX-License-Identifier: Apache-2.0
"""Speed of one greedy request on the default model: our core, llama.cpp, mlx-lm.

  decode     tokens/s after the first token, from a short prompt
  prefill    tokens/s of a prompt in one batch, until its first new token is known
  bandwidth  bytes of weights that decoding reads a second, to what this machine's memory gives

Engines take turns, run by run, each in a process of its own. llama.cpp reads the GGUF file that
our model directory was imported from; it runs with flash attention and without, and the faster
of the two is the peer. mlx-lm needs much longer on a CPU: it has shorter and fewer runs.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import peers
from machine import Machine
from measure import Result, Row, arguments
from turns import Answer, Child, started, take_turns

BF16, MEMORY, MLX_LM = "ours bf16", "memory reads", "mlx-lm"
IN_BF16 = "ours 4-bit in bf16"  # 4-bit weights, activations of the model's first type


@dataclass(frozen=True)
class Lengths:
    prompt: int
    new: int
    runs: int

    def request(self) -> dict:
        """Any ids do: the work does not depend on them."""
        return {
            "prompt": [1000 + 17 * i % 40000 for i in range(self.prompt)],
            "new_tokens": self.new,
        }

    def __str__(self) -> str:
        return f"{self.prompt} + {self.new} x {self.runs}"


DECODE, PREFILL = Lengths(32, 129, 5), Lengths(512, 1, 5)
DECODE_MLX_LM, PREFILL_MLX_LM = Lengths(32, 13, 2), Lengths(64, 1, 2)


def measure(
    children: dict[str, Child], names: list[str], usual: Lengths, of_mlx_lm: Lengths
) -> dict[str, list[Answer]]:
    lengths = {name: of_mlx_lm if name == MLX_LM else usual for name in names}
    requests = {name: known.request() for name, known in lengths.items()}
    if MEMORY in requests:
        requests[MEMORY] = {}
    return take_turns(children, {name: known.runs for name, known in lengths.items()}, requests)


def compare(what: str, speeds: dict[str, list[float]], target: float, of_mlx_lm: float) -> list:
    """Rows of ours with the faster llama.cpp and with mlx-lm."""
    llama = {name: runs for name, runs in speeds.items() if name.startswith("llama.cpp")}
    by_speed = sorted(llama, key=lambda name: statistics.median(llama[name]))
    rows = []
    for peer, least in [*((name, target) for name in by_speed[-1:]), (MLX_LM, of_mlx_lm)]:
        rows.append(Row(what, "tokens/s", speeds["ours"], peer, speeds[peer], target=least))
    for slower in by_speed[:-1]:
        rows[0].note = f"{slower} {statistics.median(llama[slower]):.1f}"
    return rows


def bandwidth(answers: dict[str, list[Answer]], speeds: dict[str, list[float]]) -> list[Row]:
    reads = [run["bytes_per_second"] / 1e9 for run in answers[MEMORY]]
    rows = []
    for name, what, target in (
        ("ours", "4-bit in float16", 0.6),
        (IN_BF16, "4-bit in bf16", 0.6),
        (BF16, "bf16", 0.8),
    ):
        size = answers[name][0]["weight_bytes"] / 1e9
        rates = [size * speed for speed in speeds[name]]
        row = Row(f"decode bandwidth, {what}", "GB/s", rates, MEMORY, reads, target=target)
        rows.append(row)
    return rows


def agreement(answers: dict[str, list[Answer]]) -> str:
    """How far greedy answers go together: near-ties part engines that round differently."""
    ours = answers["ours"][0]["token_ids"]
    parts = []
    for name, runs in answers.items():
        theirs = runs[0].get("token_ids", [])
        length = min(len(ours), len(theirs))
        same = next((i for i in range(length) if ours[i] != theirs[i]), length)
        if name != "ours" and theirs:
            parts.append(f"{name} {same} of {length}")
    return "new tokens until one differs from ours: " + ", ".join(parts)


def fill(result: Result, children: dict[str, Child], lengths: list[Lengths]) -> None:
    """Measure and add the rows."""
    decode, prefill, decode_mlx_lm, prefill_mlx_lm = lengths
    answers = measure(children, list(children), decode, decode_mlx_lm)
    result.notes.append(agreement(answers))
    speeds = {
        name: [(len(run["token_ids"]) - 1) / run["decode"] for run in runs]
        for name, runs in answers.items()
        if name != MEMORY
    }
    result.rows += compare("decode, batch 1, 4-bit", speeds, 1, 8)
    result.rows += bandwidth(answers, speeds)

    names = [name for name in children if name not in (BF16, IN_BF16, MEMORY)]
    answers = measure(children, names, prefill, prefill_mlx_lm)
    speeds = {
        name: [(prefill_mlx_lm if name == MLX_LM else prefill).prompt / run["prefill"] for run in a]
        for name, a in answers.items()
    }
    result.rows += compare(f"prefill {prefill.prompt}, 4-bit", speeds, 1, 15)


def main() -> int:
    options = arguments(__doc__, runs=DECODE.runs).parse_args()
    lengths = [DECODE, PREFILL, DECODE_MLX_LM, PREFILL_MLX_LM]
    most = 1 if options.quick else options.runs
    lengths = [replace(known, runs=min(known.runs, most)) for known in lengths[2:]]
    lengths = [replace(known, runs=most) for known in (DECODE, PREFILL)] + lengths
    model, plain, gguf = peers.default_model()
    engines = [
        peers.ours(model),
        *peers.llama_cpp(gguf),
        peers.mlx_lm(model),
        peers.ours(model, IN_BF16, "bfloat16"),
        peers.ours(plain, BF16),
        peers.memory_reads(),
    ]
    names = ("decode", "prefill", "decode of mlx-lm", "prefill of mlx-lm")
    settings = {
        f"{name} (prompt + new x runs)": str(known)
        for name, known in zip(names, lengths, strict=True)
    }
    with started(engines, options.threads) as children:
        versions = {k: v for child in children.values() for k, v in child.versions.items()}
        result = Result(Path(__file__).name, Machine.here(options.threads), versions, settings)
        fill(result, children, lengths)
    result.notes += filter(None, [peers.missing("llama-cpp")])
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
