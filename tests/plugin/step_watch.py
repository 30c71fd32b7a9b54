# SPDX-License-Identifier: Apache-2.0
"""Looks at every step of an engine in this process that has a paged KV cache."""

from dataclasses import dataclass


@dataclass
class Hits:
    """Requests that began with blocks from the prefix cache."""

    new: int = 0
    resumed: int = 0


class StepWatch:
    """Has the core check its invariants, and compares its block tables with the scheduler's."""

    def __init__(self, llm) -> None:
        engine_core = llm.llm_engine.engine_core.engine_core
        self._manager = engine_core.scheduler.kv_cache_manager
        runner = engine_core.model_executor.driver_worker.worker.model_runner
        self._core = runner._core
        self._core.check_invariants(True)
        self._execute = runner.execute_model
        runner.execute_model = self._execute_model
        self.hits = Hits()
        self.num_tables = 0  # compared

    def _execute_model(self, scheduler_output):
        output = self._execute(scheduler_output)
        for request_id in scheduler_output.num_scheduled_tokens:
            (expected,) = self._manager.get_block_ids(request_id)
            assert self._core.block_ids(request_id) == expected, request_id
            self.num_tables += 1
        self._count_hits(scheduler_output)
        return output

    def _count_hits(self, scheduler_output) -> None:
        for request in scheduler_output.scheduled_new_reqs:
            if request.num_computed_tokens:
                known = request.prefill_token_ids or request.prompt_token_ids
                resumed = len(known) > len(request.prompt_token_ids)
                self.hits.resumed += resumed
                self.hits.new += not resumed
        cached = scheduler_output.scheduled_cached_reqs
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            self.hits.resumed += request_id in cached.resumed_req_ids and computed > 0
