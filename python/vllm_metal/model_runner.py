# SPDX-License-Identifier: Apache-2.0
"""The adapter between vLLM's scheduler and the core: it translates steps and computes nothing."""

import time
from typing import TYPE_CHECKING, Any, cast

from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, LogprobsLists, ModelRunnerOutput

from vllm_metal import _core, sampling
from vllm_metal.loading import LoadProgress, config_json, resolve_model_directory
from vllm_metal.log import get_logger
from vllm_metal.memory_report import format_bytes

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

logger = get_logger(__name__)

_WARM_UP_REQUEST = "vllm-metal-warm-up"


class MetalModelRunner:
    """Owns the core's model runner and speaks to it in steps."""

    def __init__(self, vllm_config: "VllmConfig") -> None:
        """Load the model; raises what the core raises, which names file, tensor or key."""
        model_config = vllm_config.model_config
        self._block_size: int = vllm_config.cache_config.block_size
        self._dtype: torch.dtype = model_config.dtype
        directory = resolve_model_directory(model_config, vllm_config.load_config)
        start = time.perf_counter()
        self._core = _core.ModelRunner(
            directory,
            config_json(model_config),
            str(self._dtype).removeprefix("torch."),
            progress=LoadProgress(),
        )
        logger.info(
            "Loaded %s of weights from %s in %.1f s",
            format_bytes(self.weight_bytes),
            directory,
            time.perf_counter() - start,
        )
        self._output: ModelRunnerOutput | None = None

    @property
    def weight_bytes(self) -> int:
        """Memory of the model's weights."""
        return self._core.weight_bytes

    def kv_cache_spec(self) -> dict[str, KVCacheSpec]:
        """Say what each layer keeps, for vLLM's accounting of blocks."""
        spec = FullAttentionSpec(
            block_size=self._block_size,
            num_kv_heads=self._core.num_kv_heads,
            head_size=self._core.head_dim,
            dtype=self._dtype,
        )
        return {
            f"model.layers.{layer}.self_attn.attn": spec for layer in range(self._core.num_layers)
        }

    def initialize_kv_cache(self, kv_cache_config: KVCacheConfig) -> int:
        """Give the cache the capacity of vLLM's blocks; returns it in tokens."""
        num_tokens = kv_cache_config.num_blocks * self._block_size
        self._core.initialize_kv_cache(num_tokens, self._block_size)
        return num_tokens

    def warm_up(self) -> None:
        """Run one token through the model, so that no user's request waits for set-up."""
        greedy = _core.SamplingParams(temperature=0.0)
        self._step(
            new_requests=[(_WARM_UP_REQUEST, [0], 0, greedy)], scheduled=[(_WARM_UP_REQUEST, 0, 1)]
        )
        self._step(finished=[_WARM_UP_REQUEST])

    def execute_model(self, scheduler_output: "SchedulerOutput") -> ModelRunnerOutput | None:
        """Run a step. None tells vLLM to fetch the output with `sample_tokens`."""
        output = self._step(**step_arguments(scheduler_output))
        if not scheduler_output.num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        self._output = model_runner_output(list(scheduler_output.num_scheduled_tokens), output)
        if self._output.num_nans_in_logits:
            logger.error(
                "The logits of %s hold NaN: ended with an error.",
                ", ".join(self._output.num_nans_in_logits),
            )
        return None

    def sample_tokens(self) -> ModelRunnerOutput | None:
        """Return the output of the step that `execute_model` ran."""
        output, self._output = self._output, None
        return output

    def _step(self, **arguments: Any) -> "_core.StepOutput":
        empty: dict[str, list] = {
            name: [] for name in ("finished", "preempted", "new_requests", "updates", "scheduled")
        }
        return self._core.step(**(empty | arguments))


def step_arguments(scheduler_output: "SchedulerOutput") -> dict[str, list]:
    """Translate what the scheduler wants into the arguments of the core's `step`.

    vLLM speaks two dialects (`VllmConfig.use_v2_model_runner`): a request that was preempted
    comes back among the cached ones with all its tokens, or as a new one.
    """
    cached = scheduler_output.scheduled_cached_reqs
    num_computed_tokens = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    updates = [
        (request_id, cached.all_token_ids[request_id]) for request_id in cached.resumed_req_ids
    ]
    new_requests = []
    for request in scheduler_output.scheduled_new_reqs:
        num_computed_tokens[request.req_id] = request.num_computed_tokens
        if request.num_computed_tokens:
            # More input for a session, which keeps what it has in the cache: without a prefix
            # cache nothing else is new and computed in part.
            updates.append((request.req_id, _known_tokens(request)))
        else:
            new_requests.append(_new_request(request))
    return {
        "finished": list(scheduler_output.finished_req_ids),
        "preempted": list(scheduler_output.preempted_req_ids or ()),
        "new_requests": new_requests,
        "updates": updates,
        "scheduled": [
            (request_id, num_computed_tokens[request_id], num_tokens)
            for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items()
        ],
    }


def model_runner_output(request_ids: list[str], output: "_core.StepOutput") -> ModelRunnerOutput:
    """Translate the core's output for the scheduled requests `request_ids`, in their order."""
    logprobs = cast("tuple | None", output.logprobs)
    return ModelRunnerOutput(
        req_ids=request_ids,
        req_id_to_index={request_id: row for row, request_id in enumerate(request_ids)},
        sampled_token_ids=output.token_ids,
        logprobs=None if logprobs is None else LogprobsLists(*logprobs),
        num_nans_in_logits={request_ids[row]: 1 for row in output.failed} or None,
    )


def _known_tokens(request: "NewRequestData") -> list[int]:
    return request.prefill_token_ids or request.prompt_token_ids


def _new_request(request: "NewRequestData") -> tuple:
    """Return id, tokens, how many of them were generated before a preemption, parameters."""
    tokens = _known_tokens(request)
    num_output_tokens = len(tokens) - len(request.prompt_token_ids)
    params = sampling.to_core(request.sampling_params)
    return request.req_id, tokens, num_output_tokens, params
