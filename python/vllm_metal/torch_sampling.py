# SPDX-License-Identifier: Apache-2.0
"""Requests that custom Python logits processors apply to, drawn by vLLM's torch sampler."""

import copy
import dataclasses
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.outputs import LogprobsLists
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler, apply_top_k_top_p_pytorch
from vllm.v1.sample.sampler import Sampler
from vllm.v1.sample.thinking_budget_state import maybe_create_thinking_budget_state_holder

from vllm_metal.custom_logits_processors import CustomLogitsProcessors
from vllm_metal.torch_sampling_metadata import SampledRequest, num_logprobs, sampling_metadata

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.metadata import SamplingMetadata

FAILED = -1  # the token of a row whose logits hold NaN or are all -inf


class TorchSampling:
    """Draws for the requests that custom logits processors apply to; knows no others.

    The batch that processors see is the requests of one `sample`, changed through vLLM's
    BatchUpdate protocol. vLLM itself takes a request that a step leaves out from its batch and
    adds it again later, so processors are made for that. The other way, to keep rows of requests
    that draw nothing, would show processors that count or remember calls a token that never is;
    vLLM does so for chunks of a prompt, and here there are none.
    """

    @staticmethod
    def create(vllm_config: "VllmConfig") -> "TorchSampling | None":
        """Load custom processors; None without any. Raises what loading raises."""
        processors = CustomLogitsProcessors.load(vllm_config)
        return None if processors is None else TorchSampling(vllm_config, processors)

    def __init__(self, vllm_config: "VllmConfig", processors: CustomLogitsProcessors) -> None:
        """Take loaded processors."""
        model_config = vllm_config.model_config
        self._vocab_size: int = model_config.get_vocab_size()
        self._processors = processors
        arguments = (model_config.logprobs_mode, model_config.use_fp64_gumbel)
        self._sampler = Sampler(*arguments)
        self._sampler.topk_topp_sampler = _TopKTopP(*arguments)
        self._thinking = maybe_create_thinking_budget_state_holder(
            vllm_config.reasoning_config,
            vllm_config.scheduler_config.max_num_seqs,
            num_spec_tokens=0,
            device=torch.device("cpu"),
            is_pin_memory=False,
        )
        self._requests: dict[str, SampledRequest] = {}
        self._random = random.Random(model_config.seed)  # seeds of requests without one
        # The batch as the processors know it. None: free to them, whoever was there.
        self._rows: list[SampledRequest | None] = []
        self._metadata: SamplingMetadata | None = None

    def add(
        self,
        request_id: str,
        params: "SamplingParams",
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
    ) -> bool:
        """Say whether the request's tokens are drawn here; what was known under the id is gone.

        For a request preempted and resumed, `output_token_ids` is what it generated before.
        Raises LogitsProcessorError when an adapter fails; the request is not known then.
        """
        self.remove(request_id)
        request = SampledRequest(
            copy.copy(params),  # the answers of adapters are told apart by it
            list(prompt_token_ids),
            list(output_token_ids),
            self._random.getrandbits(64) if params.seed is None else params.seed,
        )
        # A tokenizer may know more tokens than the model, which draws none of those.
        request.params._all_stop_token_ids = {
            token_id for token_id in params.all_stop_token_ids if 0 <= token_id < self._vocab_size
        }
        handled = self._processors.apply_to(request.params, request_id)
        if handled:
            self._requests[request_id] = request
        else:
            self._processors.forget(request.params)
        return handled

    def remove(self, request_id: str) -> None:
        """Forget a request; unknown ids are fine. Processors are told in the next `sample`."""
        if request := self._requests.pop(request_id, None):
            self._processors.forget(request.params)

    def handles(self, request_id: str) -> bool:
        """Whether the request's tokens are drawn here."""
        return request_id in self._requests

    @torch.no_grad()
    def sample(
        self,
        request_ids: Sequence[str],
        logits: torch.Tensor,
        bitmask: np.ndarray | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[int], LogprobsLists | None]:
        """Draw one token for each of `request_ids` and note it as the request's next output.

        logits  float32 [num_rows, vocab_size], of any batch: copied row by row, never changed
        bitmask int32 [num_rows, >= ceil(vocab_size / 32)], lowest bits first; a row without
                grammar has all bits set
        rows    the row of each request, its index in `request_ids` where not given
        Returns the tokens, FAILED for logits without a number to draw by, and, where a request
        asked for any, their logprobs: width 1 + the most asked for, what a row did not ask for is
        padding: -inf, id 0, rank 0.
        Raises LogitsProcessorError when a custom processor fails. No token is noted then, and all
        processors are told to drop the batch and get it again with the next `sample`.
        """
        if logits.shape[1] != self._vocab_size:
            raise ValueError(f"Expected {self._vocab_size} logits a row, got {logits.shape[1]}.")
        requests = [self._requests[request_id] for request_id in request_ids]
        if not requests:
            return [], None
        index_of = {request: index for index, request in enumerate(requests)}
        try:
            batch = self._update_batch(requests)
            indices = [index_of[request] for request in batch]
            sources = indices if rows is None else [rows[index] for index in indices]
            batch_logits = logits[sources].float()
            if bitmask is not None:
                _apply_bitmask(batch_logits, bitmask, sources)
            failed = ~(batch_logits.amax(dim=-1) > -torch.inf)  # of NaN too
            tokens, scores = self._draw(batch, batch_logits)
        except BaseException:
            # Who heard of what is not known any more.
            self._rows = [None] * max(len(self._rows), len(requests))
            raise
        tokens[failed] = FAILED
        for request, token in zip(batch, tokens.tolist(), strict=True):
            if token != FAILED:
                request.output_token_ids.append(token)
        order = np.argsort(indices)  # back to that of `request_ids`
        logprobs = None if scores is None else _gather_logprobs(scores, tokens, batch, order)
        return tokens[order].tolist(), logprobs

    def _update_batch(self, requests: list[SampledRequest]) -> list[SampledRequest]:
        """Make `requests` the batch, in an order of its own, and tell the processors."""
        update = _rearrange(self._rows, requests)
        batch = [request for request in self._rows if request is not None]
        if update is not None and self._thinking is not None:
            # It does not clear the row that a request without a budget moves to.
            moved_to = [target for _, target, _ in update.moved]
            self._thinking.sync_batch(
                dataclasses.replace(update, removed=[*update.removed, *moved_to])
            )
        for processor in self._processors.logitsprocs.all:
            processor.update_state(update)
        if update is not None or self._metadata is None:
            self._metadata = sampling_metadata(
                batch, self._vocab_size, self._processors.logitsprocs, self._thinking
            )
        return batch

    def _draw(
        self, batch: list[SampledRequest], logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return tokens, int [num_rows], and the scores behind logprobs, [num_rows, vocab_size]."""
        assert self._metadata is not None
        if not self._metadata.all_greedy:
            for request in batch:
                request.seed_next_draw()
        output = self._sampler(logits, self._metadata)
        scores = None if output.logprobs_tensors is None else output.logprobs_tensors.logprobs
        return output.sampled_token_ids[:, 0], scores


class _TopKTopP(TopKTopPSampler):
    """Filters by torch alone: wherever Triton is, vLLM takes its kernels, which need a GPU."""

    def forward_native(
        self,
        logits: torch.Tensor,
        generators: dict[int, torch.Generator],
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logits = apply_top_k_top_p_pytorch(logits, k, p, allow_cpu_sync=True)
        return super().forward_native(logits, generators, None, None)


def _rearrange(
    rows: list[SampledRequest | None], requests: list[SampledRequest]
) -> BatchUpdate | None:
    """Make `rows` hold `requests`, by the moves that vLLM's own batch would make.

    New requests take the lowest rows that were left, then the last rows move down to the rest.
    Rows taken again are not among those removed.
    """
    wanted, present = set(requests), set(rows)
    free = [row for row, request in enumerate(rows) if request not in wanted]  # ascending
    added = []
    for request in requests:
        if request in present:
            continue
        row = free.pop(0) if free else len(rows)
        rows[row : row + 1] = [request]
        added.append((row, request.params, request.prompt_token_ids, request.output_token_ids))
    moved = []
    while free and free[0] < len(requests):
        while rows[-1] not in wanted:
            rows.pop()
        target = free.pop(0)
        moved.append((len(rows) - 1, target, MoveDirectionality.UNIDIRECTIONAL))
        rows[target] = rows.pop()
    del rows[len(requests) :]
    if not (free or added or moved):
        return None
    return BatchUpdate(batch_size=len(rows), removed=free[::-1], added=added, moved=moved)


def _apply_bitmask(logits: torch.Tensor, bitmask: np.ndarray, rows: Sequence[int]) -> None:
    """Take from each row of `logits` the tokens that its row of `bitmask` does not allow."""
    for row_logits, row in zip(logits, rows, strict=True):
        if (bitmask[row] == -1).all():
            continue
        octets = np.ascontiguousarray(bitmask[row], dtype=np.int32).view(np.uint8)
        allowed = np.unpackbits(octets, bitorder="little", count=len(row_logits))
        row_logits.masked_fill_(torch.from_numpy(allowed == 0), -torch.inf)


def _gather_logprobs(
    scores: torch.Tensor, tokens: torch.Tensor, batch: list[SampledRequest], order: np.ndarray
) -> LogprobsLists:
    """Give each request what it asked for: column 0 the drawn token, then the others.

    vLLM's sampler gives all rows what one asked for, and the most likely tokens to none when
    another asked for given ones.
    """
    vocab_size = scores.shape[1]
    width = 1 + max(num_logprobs(request.params, vocab_size) or 0 for request in batch)
    token_ids = np.zeros((len(batch), width), dtype=np.int32)
    logprobs = np.full((len(batch), width), -np.inf, dtype=np.float32)
    ranks = np.zeros(len(batch), dtype=np.int64)
    for index, row in enumerate(order):
        params, token = batch[row].params, int(tokens[row])
        count = num_logprobs(params, vocab_size)
        if count is None or token == FAILED:
            continue
        if params.logprob_token_ids is None:
            others = scores[row].topk(count).indices
        else:
            others = torch.tensor(params.logprob_token_ids, dtype=torch.int64)
        columns = torch.cat((torch.tensor([token]), others))
        token_ids[index, : count + 1] = columns
        logprobs[index, : count + 1] = scores[row][columns]
        ranks[index] = (scores[row] >= scores[row][token]).sum()
    return LogprobsLists(token_ids, logprobs, ranks)
