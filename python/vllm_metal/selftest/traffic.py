# SPDX-License-Identifier: Apache-2.0
"""The same requests on any model of the core, whatever computes it and whatever the KV cache is.

Requests come and go as a scheduler has them: whole prompts, chunks and decodes in one step. Every
token after the prompt is given, so that one step that rounds differently does not change the next.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vllm_metal.selftest.greedy import load_core
from vllm_metal.selftest.tiny_models import write_tensors

if TYPE_CHECKING:
    from vllm_metal import _core

BLOCK_SIZE = 16
MODES = ("managed", "paged")
_PROMPTS = {"a": 1, "b": 17, "c": 90, "d": 33}
_NEW_TOKENS = 6
# Tokens of each request a step, until all prompts are read.
_STEPS = ({"a": 1, "c": 40}, {"a": 1, "b": 17, "c": 40}, {"a": 1, "b": 1, "c": 10, "d": 33})


def logits_of_traffic(model: Path, dtype: str, mode: str) -> np.ndarray:
    """Return the logits of every row that a token is drawn of, float32 [rows, vocab_size].

    RuntimeError when a greedy token is not that of the highest logit.
    """
    runner, _, _ = load_core(model, dtype)
    runner.keep_logits(True)
    sequences = _sequences(runner.vocab_size)
    blocks_each = -(-max(map(len, sequences.values())) // BLOCK_SIZE)
    num_blocks = 1 + len(sequences) * blocks_each  # block 0 is nobody's
    if mode == "paged":
        runner.initialize_paged_kv_cache(num_blocks, BLOCK_SIZE)
    else:
        runner.initialize_kv_cache(num_blocks * BLOCK_SIZE, BLOCK_SIZE)
    tables = {
        name: list(range(1 + i * blocks_each, 1 + (i + 1) * blocks_each))
        for i, name in enumerate(sequences)
    }
    return _Run(runner, sequences, tables if mode == "paged" else {}).run()


def _sequences(vocab_size: int) -> dict[str, list[int]]:
    random = np.random.default_rng(1)
    return {
        name: random.integers(0, vocab_size, length + 2 * _NEW_TOKENS).tolist()
        for name, length in _PROMPTS.items()
    }


class _Run:
    def __init__(
        self,
        runner: "_core.ModelRunner",
        sequences: dict[str, list[int]],
        tables: dict[str, list[int]],
    ) -> None:
        self._runner, self._sequences, self._tables = runner, sequences, tables
        self._computed: dict[str, int] = {}
        self._rows: list[np.ndarray] = []

    def run(self) -> np.ndarray:
        for counts in (*_STEPS, *[dict.fromkeys(_PROMPTS, 1)] * _NEW_TOKENS):
            self._step(counts)
        return np.concatenate(self._rows)

    def _step(self, counts: dict[str, int]) -> None:
        from vllm_metal import _core

        greedy = _core.SamplingParams(temperature=0.0)
        new = [name for name in counts if name not in self._computed]
        scheduled = [(name, self._computed.get(name, 0), n) for name, n in counts.items()]
        output = self._runner.step(
            new_requests=[
                (name, self._sequences[name][: _PROMPTS[name]], 0, greedy) for name in new
            ],
            blocks=[(name, self._tables[name], False) for name in new if self._tables],
            scheduled=scheduled,
        )
        drawn = [tokens[0] for tokens in output.token_ids if tokens]
        if drawn:
            logits = np.array(self._runner.last_logits)
            self._check_greedy(logits, drawn)
            self._rows.append(logits)
        self._computed |= {name: computed + n for name, computed, n in scheduled}
        self._give_next_tokens()

    def _check_greedy(self, logits: np.ndarray, drawn: list[int]) -> None:
        for row, token in zip(logits, drawn, strict=True):
            if row[token] != row.max():
                raise RuntimeError(f"token {token} was drawn, {int(row.argmax())} is likelier")

    def _give_next_tokens(self) -> None:
        """Put given tokens in the place of those that were drawn."""
        updates = [
            (name, self._sequences[name][: computed + 1])
            for name, computed in self._computed.items()
            if computed >= _PROMPTS[name]
        ]
        if updates:
            self._runner.step(updates=updates)


def write_logits(model: Path, runs: list[tuple[str, str]], file: Path) -> None:
    """Compute runs, (dtype, mode) each, and store their logits under dtype/mode."""
    logits = {f"{dtype}/{mode}": logits_of_traffic(model, dtype, mode) for dtype, mode in runs}
    write_tensors(file, logits, "float32")


def main() -> None:
    """Do what the first argument, a JSON object, says."""
    import sys

    from vllm_metal import _core

    request = json.loads(sys.argv[1])
    _core.device_info()  # picks the device
    _core.set_device_kernels_enabled(request["kernels"])
    write_logits(Path(request["model"]), request["runs"], Path(request["file"]))


if __name__ == "__main__":
    main()
