# SPDX-License-Identifier: Apache-2.0
"""The rows of a step that torch draws, between the core and vLLM's torch sampler.

The logits stay where MLX put them; torch looks at that memory.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vllm_metal.custom_logits_processors import LogitsProcessorError
from vllm_metal.log import get_logger
from vllm_metal.tensor_bridge import to_torch
from vllm_metal.torch_sampling import FAILED, TorchSampling

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput
    from vllm.v1.outputs import LogprobsLists

    from vllm_metal import _core

logger = get_logger(__name__)


@dataclass
class TorchDraw:
    """What torch drew of a step."""

    given: list[tuple[int, int]] = field(default_factory=list)  # scheduled index, token
    failed: list[int] = field(default_factory=list)  # scheduled indexes
    # Rows among all that the step samples, and their logprobs if any request asked for some.
    rows: list[int] = field(default_factory=list)
    logprobs: "LogprobsLists | None" = None

    def put_logprobs(self, target: "LogprobsLists") -> None:
        """Write them over those of all rows."""
        if self.logprobs is None:
            return
        width = self.logprobs.logprobs.shape[1]
        target.logprob_token_ids[self.rows, :width] = self.logprobs.logprob_token_ids
        target.logprobs[self.rows, :width] = self.logprobs.logprobs
        target.sampled_token_ranks[self.rows] = self.logprobs.sampled_token_ranks


class TorchDrawing:
    """Knows which requests custom logits processors apply to, and has their tokens drawn."""

    @staticmethod
    def create(vllm_config: "VllmConfig") -> "TorchDrawing | None":
        """Load custom logits processors; None without any. Raises what loading raises."""
        sampling = TorchSampling.create(vllm_config)
        return None if sampling is None else TorchDrawing(sampling)

    def __init__(self, sampling: TorchSampling) -> None:
        self._sampling = sampling
        self._requests: dict[str, NewRequestData] = {}  # those that torch draws for
        self._broken: set[str] = set()  # those whose adapter failed

    def note(self, scheduler_output: "SchedulerOutput") -> None:
        """Follow requests that come, end, and come back after a preemption."""
        for request_id in scheduler_output.finished_req_ids:
            self._forget(request_id)
        for request in scheduler_output.scheduled_new_reqs:
            self._forget(request.req_id)
            self._add(request, request.prefill_token_ids or request.prompt_token_ids)
        cached = scheduler_output.scheduled_cached_reqs
        for request_id in cached.resumed_req_ids:
            if request := self._requests.get(request_id):
                self._add(request, cached.all_token_ids[request_id])

    def draw(
        self,
        core: "_core.ModelRunner",
        scheduled_ids: list[str],
        grammar_output: "GrammarOutput | None",
    ) -> TorchDraw:
        """Draw for the launched step, waiting for its logits if any of them are needed here."""
        draw = TorchDraw()
        ids = []
        for row, index in enumerate(core.sampled_indices):
            request_id = scheduled_ids[index]
            if request_id in self._broken:
                draw.failed.append(index)
            elif self._sampling.handles(request_id):
                ids.append(request_id)
                draw.rows.append(row)
        if not ids:
            return draw
        indices = [core.sampled_indices[row] for row in draw.rows]
        logits = to_torch(core.logits())
        try:
            tokens, draw.logprobs = self._sampling.sample(
                ids, logits, _bitmask(core, scheduled_ids, grammar_output), draw.rows
            )
        except LogitsProcessorError:
            logger.exception("The requests %s end with an error.", ", ".join(ids))
            tokens = [FAILED] * len(ids)
        for index, token in zip(indices, tokens, strict=True):
            if token == FAILED:
                draw.failed.append(index)
            else:
                draw.given.append((index, token))
        return draw

    def _add(self, request: "NewRequestData", tokens: list[int]) -> None:
        num_prompt_tokens = len(request.prompt_token_ids)
        try:
            handled = self._sampling.add(
                request.req_id,
                request.sampling_params,
                request.prompt_token_ids,
                tokens[num_prompt_tokens:],
            )
        except LogitsProcessorError:
            logger.exception("Request %s ends with an error.", request.req_id)
            self._broken.add(request.req_id)
            return
        if handled:
            self._requests[request.req_id] = request

    def _forget(self, request_id: str) -> None:
        self._sampling.remove(request_id)
        self._requests.pop(request_id, None)
        self._broken.discard(request_id)


def _bitmask(
    core: "_core.ModelRunner", scheduled_ids: list[str], grammar_output: "GrammarOutput | None"
) -> np.ndarray | None:
    """Give every sampled row its bitmask; None when no request has a grammar."""
    if grammar_output is None:
        return None
    masks = dict(
        zip(
            grammar_output.structured_output_request_ids,
            grammar_output.grammar_bitmask,
            strict=True,
        )
    )
    everything = np.full(grammar_output.grammar_bitmask.shape[1], -1, dtype=np.int32)
    return np.stack([masks.get(scheduled_ids[index], everything) for index in core.sampled_indices])
