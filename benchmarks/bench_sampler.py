# SPDX-License-Identifier: Apache-2.0
"""Time of one step's sampling on a CPU: ours and vLLM's torch sampler in the same run.

Both draw from the same logits with as many threads as there are cores, turn by turn. Neither
side is charged for what a step does not repeat: vLLM's metadata and ours of the requests are
made before. Logits are normal, of deviation 3: top-p 0.95 leaves some thousands of tokens.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peers
import torch
from machine import Machine
from measure import Result, Row, arguments

PROMPT_LEN, OUTPUT_LEN = 256, 128
Step = Callable[[], Any]


@dataclass(frozen=True)
class Kind:
    """What the rows of a batch ask for; they take turns where there are several."""

    rows: list[dict[str, Any]]
    grammar: bool = False
    logprobs: int | None = None


GREEDY = {"temperature": 0.0}
FILTERED = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}
PENALISED = {
    "temperature": 0.8,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
}
KINDS = {
    "greedy": Kind([GREEDY]),
    "temperature": Kind([{"temperature": 0.8}]),
    "top-k": Kind([{"temperature": 0.8, "top_k": 50}]),
    "top-p": Kind([{"temperature": 0.8, "top_p": 0.95}]),
    "top-k/top-p": Kind([FILTERED]),
    "penalties": Kind([PENALISED]),
    "logprobs 20": Kind([GREEDY], logprobs=20),
    "grammar": Kind([{"temperature": 0.8}], grammar=True),
    "mixed": Kind([GREEDY, FILTERED, PENALISED, {"min_p": 0.05}], grammar=True, logprobs=5),
}


@dataclass
class Batch:
    """The input of both samplers."""

    logits: torch.Tensor  # float32 [num_rows, vocab_size]
    bitmask: np.ndarray  # int32 [num_rows, ceil(vocab_size / 32)]
    params: list[dict[str, Any]]
    prompts: list[list[int]]
    outputs: list[list[int]]
    kind: Kind = field(default_factory=lambda: KINDS["greedy"])

    @staticmethod
    def make(kind: Kind, num_rows: int, vocab_size: int) -> Batch:
        rng = np.random.default_rng(num_rows + vocab_size)
        logits = 3 * rng.standard_normal((num_rows, vocab_size), dtype=np.float32)
        words = rng.integers(0, 2**32, (num_rows, (vocab_size + 31) // 32), dtype=np.uint32)
        # A grammar inside of a string allows much, one at a bracket next to nothing.
        words[1::2, 8:] = 0
        tokens = lambda length: rng.integers(0, vocab_size, (num_rows, length)).tolist()  # noqa: E731
        params = [kind.rows[i % len(kind.rows)] for i in range(num_rows)]
        return Batch(
            torch.from_numpy(logits),
            words.view(np.int32),
            params,
            tokens(PROMPT_LEN),
            tokens(OUTPUT_LEN),
            kind,
        )


def ours(batch: Batch) -> Step:
    from vllm_metal import _core

    config = _core.SamplerConfig(batch.logits.shape[1])
    states = [
        _core.SamplingState(
            _core.SamplingParams(**params, num_logprobs=batch.kind.logprobs),
            seed,
            config,
            prompt + output,
            len(output),
        )
        for seed, (params, prompt, output) in enumerate(
            zip(batch.params, batch.prompts, batch.outputs, strict=True)
        )
    ]
    bitmask = batch.bitmask if batch.kind.grammar else None
    return lambda: _core.sample(config, batch.logits, states, bitmask)


def vllm_metadata(batch: Batch) -> Any:
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, MinPLogitsProcessor
    from vllm_metal.torch_sampling_metadata import SampledRequest, sampling_metadata

    num_rows, vocab_size = batch.logits.shape
    requests = [
        SampledRequest(SamplingParams(**params), prompt, output, seed=0)
        for params, prompt, output in zip(batch.params, batch.prompts, batch.outputs, strict=True)
    ]
    config: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=num_rows))
    min_p = MinPLogitsProcessor(config, torch.device("cpu"), False)
    min_p.update_state(
        BatchUpdate(num_rows, [], [(i, r.params, [], []) for i, r in enumerate(requests)], [])
    )
    metadata = sampling_metadata(requests, vocab_size, LogitsProcessors([min_p]), None)
    return replace(metadata, generators={}, max_num_logprobs=batch.kind.logprobs)


def vllm(batch: Batch) -> Step:
    import xgrammar
    from vllm.v1.sample.sampler import Sampler

    sampler = Sampler("raw_logprobs")
    metadata = vllm_metadata(batch)
    bitmask = torch.from_numpy(batch.bitmask)

    def step() -> Any:
        logits = batch.logits
        if batch.kind.grammar:
            xgrammar.apply_token_bitmask_inplace(logits, bitmask)
        return sampler(logits, metadata)

    return step


def microseconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e6


def measure(kind: Kind, num_rows: int, vocab_size: int, runs: int) -> dict[str, list[float]]:
    """Times of both; a turn is a step that is not counted and one that is."""
    batch = Batch.make(kind, num_rows, vocab_size)
    kept = batch.logits.clone()
    steps = {"ours": ours(batch), "vllm": vllm(batch)}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(runs + 1):
        for name, step in steps.items():
            time.sleep(0.01)  # threads of the other side stop waiting for work
            for count in (False, turn > 0):
                batch.logits.copy_(kept)  # vLLM works in place
                time_taken = microseconds(step)
                if count:
                    samples[name].append(time_taken)
    return samples


def main() -> int:
    parser = arguments(f"{__doc__}\n--quick: batch 1 and 32 of the small vocabulary.", runs=7)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 151936])
    parser.add_argument("--kind", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    if options.quick:
        options.batch, options.vocab, options.runs = [1, 32], [49152], 5
    torch.set_num_threads(options.threads)
    versions = peers.versions("vllm-metal", "vllm", "torch")
    machine = Machine.here(options.threads)
    result = Result(Path(__file__).name, machine, versions, {"runs": options.runs})
    for vocab_size, name, num_rows in itertools.product(options.vocab, options.kind, options.batch):
        times = measure(KINDS[name], num_rows, vocab_size, options.runs)
        what = f"sampler, {name}, batch {num_rows} of {vocab_size}"
        ours, theirs = times["ours"], times["vllm"]
        result.rows.append(Row(what, "µs", ours, "vLLM's", theirs, higher_is_better=False))
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
