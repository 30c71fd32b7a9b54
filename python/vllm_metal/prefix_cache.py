# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG002  the signatures are vLLM's
"""The prefix cache of the MLX-managed KV cache, as vLLM's scheduler sees it: a KV connector.

It keeps the directory of cached blocks (`_core.PrefixIndex`) and tells the worker, with each step,
what to copy where. The worker copies in the order of steps (`PrefixCacheStep`), so that what is
known here is always what the device will find, however many steps are under way. A step that fails
ends the engine, and the directory with it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

    from vllm_metal import _core

# Request id, index of the first of its blocks, blocks of the prefix cache.
CachedBlocks = tuple[str, int, list[int]]


@dataclass
class PrefixCacheSize(KVConnectorHandshakeMetadata):
    """What the worker says of its prefix cache when it is there."""

    num_blocks: int


@dataclass
class PrefixCacheStep(KVConnectorMetadata):
    """What the prefix cache does in a step, in this order; see `_core.PrefixCacheInput`."""

    clear: bool = False
    saves_of_ended: list[CachedBlocks] = field(default_factory=list)
    loads: list[CachedBlocks] = field(default_factory=list)
    saves_of_scheduled: list[CachedBlocks] = field(default_factory=list)


class MetalPrefixCacheConnector(KVConnectorBase_V1, SupportsHMA):
    """The scheduler's half; `MetalWorker` is the other.

    A prompt's full blocks are saved in the step that computes them, those of generated tokens when
    a request ends or is preempted. A hit leaves at least one token to compute.
    """

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        if role != KVConnectorRole.SCHEDULER:
            raise ValueError("MetalWorker copies cached blocks itself, without a connector.")
        super().__init__(vllm_config, role, kv_cache_config)
        self._block_size: int = vllm_config.cache_config.block_size
        self._index: _core.PrefixIndex | None = None
        self._step = PrefixCacheStep()
        # Requests whose tokens the worker holds once the steps until now are done. Those of them
        # whose prompt (after a preemption: all known tokens) is not computed to its end.
        self._live: dict[str, Request] = {}
        self._prefilling: dict[str, Request] = {}
        self._admitted: list[Request] = []  # since the last step was built
        self.saves = True  # whether anything is saved; memory may be short

    @property
    def requires_kv_delivery(self) -> bool:
        """Return False: a preempted request's tokens that are under way still count."""
        return False

    def set_xfer_handshake_metadata(
        self, metadata: dict[int, KVConnectorHandshakeMetadata]
    ) -> None:
        """Learn from the worker how many blocks there are."""
        from vllm_metal import _core

        (size,) = metadata.values()
        assert isinstance(size, PrefixCacheSize)
        self._index = _core.PrefixIndex(size.num_blocks)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int, bool]:
        """Return how many tokens are cached; asking changes only which blocks are recent."""
        if num_computed_tokens or request.skip_reading_prefix_cache:
            return 0, False
        limit = (request.num_tokens - 1) // self._block_size
        return len(self._match(request, limit)) * self._block_size, False

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        """Take note that a request is scheduled, with so many tokens from here."""
        self._admitted.append(request)
        if num_external_tokens:
            cached = self._match(request, num_external_tokens // self._block_size)
            assert len(cached) * self._block_size == num_external_tokens
            self._step.loads.append((request.request_id, 0, cached))

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> PrefixCacheStep:
        """Return what the worker does in the step that was scheduled."""
        for request_id in scheduler_output.preempted_req_ids or ():
            self._note_preempted(request_id)
        for request in self._admitted:
            self._live[request.request_id] = self._prefilling[request.request_id] = request
        self._admitted.clear()
        self._save_prefilling(scheduler_output.num_scheduled_tokens)
        step, self._step = self._step, PrefixCacheStep()
        if self._index is not None:
            self._index.begin_step()
        return step

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Save what was computed of a request that ended, by itself or aborted.

        num_computed_tokens counts all steps that were scheduled, the one under way too; the worker
        gets this save after them. Of the known tokens the last one may have been drawn only: its
        keys are there if a step under way computes them, which nobody here knows. A
        request that was preempted since the last step has no computed tokens.
        """
        is_live = self._live.pop(request.request_id, None) is request
        self._prefilling.pop(request.request_id, None)
        if is_live and request.status != RequestStatus.FINISHED_ERROR:
            num_tokens = min(request.num_computed_tokens, request.num_tokens - 1)
            self._save(request, num_tokens, self._step.saves_of_ended)
        return False, None

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Do the same; there is one group of blocks."""
        return self.request_finished(request, block_ids[0])

    def reset_cache(self) -> bool:
        """Forget all, also what the requests that live now have computed and not saved yet."""
        if self._index is not None:
            self._index.clear()
        self._live.clear()
        self._prefilling.clear()
        # Requests are admitted while a step is scheduled, which no reset comes in between of.
        self._step = PrefixCacheStep(clear=True)
        return True

    def _match(self, request: "Request", limit: int) -> list[int]:
        if self._index is None:
            return []
        return self._index.match(request.block_hashes[:limit])

    def _save(self, request: "Request", num_tokens: int, saves: list[CachedBlocks]) -> None:
        if self._index is None or not self.saves:
            return
        hashes = request.block_hashes[: num_tokens // self._block_size]
        first_block, blocks = self._index.save(hashes)
        if blocks:
            saves.append((request.request_id, first_block, blocks))

    def _note_preempted(self, request_id: str) -> None:
        """Save what was computed of a request before it loses its cache, with this step.

        Its num_computed_tokens are gone. Once its prompt is computed, those of all known tokens
        but the last are in the cache, whatever is under way; before, its chunks were saved.
        """
        request = self._live.pop(request_id, None)
        if request is None:
            return
        if self._prefilling.pop(request_id, None) is None:
            self._save(request, request.num_tokens - 1, self._step.saves_of_ended)

    def _save_prefilling(self, num_scheduled_tokens: dict[str, int]) -> None:
        """Save what the step computes of prompts. All of these tokens are known."""
        done = []
        for request_id, request in self._prefilling.items():
            num_new = num_scheduled_tokens.get(request_id, 0)
            if not num_new:
                continue
            num_computed = request.num_computed_tokens + num_new  # once the step is done
            self._save(request, num_computed, self._step.saves_of_scheduled)
            if num_computed >= request.num_tokens:
                done.append(request_id)
        for request_id in done:
            del self._prefilling[request_id]

    # The worker's half, which vLLM does not make here

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Do nothing: a step's loads go with its launch."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: layers wait for what they read."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Do nothing: a step's saves go with its launch."""

    def wait_for_save(self) -> None:
        """Do nothing: copies and steps are in one order."""
