# SPDX-License-Identifier: Apache-2.0
"""The adapter between vLLM's scheduler and the core: it translates steps and computes nothing."""

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
)

from vllm_metal import _core, envs, sampling
from vllm_metal.loading import LoadProgress, config_json, resolve_model_directory
from vllm_metal.log import get_logger
from vllm_metal.memory import format_bytes
from vllm_metal.prefix_cache import PrefixCacheStep
from vllm_metal.pytorch_weights import read_pickle
from vllm_metal.step_trace import LaunchedStep, StepTrace
from vllm_metal.torch_draw import TorchDraw, TorchDrawing

if TYPE_CHECKING:
    import numpy as np
    from vllm.config import VllmConfig
    from vllm.config.reasoning import ReasoningConfig
    from vllm.v1.core.sched.output import GrammarOutput, NewRequestData, SchedulerOutput

logger = get_logger(__name__)

_WARM_UP_REQUEST = "vllm-metal-warm-up"
_MEASURED_TOKENS_ON_CPU = 256
_FIRST_BLOCK = 1  # block 0 is vLLM's own
_NOTHING_CACHED = PrefixCacheStep()


class MetalModelRunner:
    """Owns the core's model runner and speaks to it in steps."""

    def __init__(self, vllm_config: "VllmConfig") -> None:
        """Load the model; raises what the core raises, which names file, tensor or key."""
        model_config = vllm_config.model_config
        self._block_size: int = vllm_config.cache_config.block_size
        self._paged = envs.paged_attention()
        self._dtype: torch.dtype = model_config.dtype
        directory = resolve_model_directory(model_config, vllm_config.load_config)
        start = time.perf_counter()
        self._core = _core.ModelRunner(
            directory,
            config_json(model_config),
            str(self._dtype).removeprefix("torch."),
            progress=LoadProgress(),
            read_pickle=read_pickle,
            logprobs_mode=model_config.logprobs_mode,
            seed=model_config.seed % 2**64,
            **reasoning_arguments(vllm_config.reasoning_config),
        )
        logger.info(
            "Loaded %s of weights from %s in %.1f s",
            format_bytes(self.weight_bytes),
            directory,
            time.perf_counter() - start,
        )
        self._torch_drawing = TorchDrawing.create(vllm_config)
        self._max_model_len: int = model_config.max_model_len
        self._scheduler_config = vllm_config.scheduler_config
        self._scheduled_ids: list[str] = []
        self._trace: StepTrace | None = None
        self._launched = LaunchedStep(0, 0, 0, 0)

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

    def measure_activations(self, backend: str) -> int:
        """Run the largest step that the scheduler may ask for; returns its bytes.

        The CPU would take seconds to minutes for it: there a smaller step is scaled up, which
        differs by less than two runs do.
        """
        num_tokens = self._scheduler_config.max_num_batched_tokens
        num_requests = min(self._scheduler_config.max_num_seqs, num_tokens)
        num_tokens = min(num_tokens, num_requests * self._max_model_len)
        scale = max(1.0, num_tokens / _MEASURED_TOKENS_ON_CPU) if backend == "cpu" else 1.0
        start = time.perf_counter()
        activation_bytes = scale * self._core.measure_activations(
            int(num_tokens / scale), max(1, int(num_requests / scale))
        )
        logger.info(
            "A step of %d tokens needs %s; measured in %.1f s",
            num_tokens,
            format_bytes(int(activation_bytes)),
            time.perf_counter() - start,
        )
        return int(activation_bytes)

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, num_prefix_cache_blocks: int = 0
    ) -> None:
        """Give the cache the capacity of vLLM's blocks, and the prefix cache its own."""
        num_blocks = kv_cache_config.num_blocks
        if self._paged:
            self._core.initialize_paged_kv_cache(num_blocks, self._block_size)
        else:
            num_tokens = num_blocks * self._block_size
            self._core.initialize_kv_cache(num_tokens, self._block_size, num_prefix_cache_blocks)

    def warm_up(self) -> None:
        """Run one token through the model, so that no user's request waits for set-up."""
        greedy = _core.SamplingParams(temperature=0.0)
        self._core.step(
            new_requests=[(_WARM_UP_REQUEST, [0], 0, greedy)],
            scheduled=[(_WARM_UP_REQUEST, 0, 1)],
            blocks=[(_WARM_UP_REQUEST, [_FIRST_BLOCK], True)],
        )
        self._core.step(finished=[_WARM_UP_REQUEST])

    def free(self, tags: Collection[str]) -> None:
        """Free the memory of "weights" and "kv_cache"."""
        if "kv_cache" in tags:
            self._core.discard_kv_cache()
        if "weights" in tags:
            self._core.unload_weights()

    def load_weights(self) -> None:
        """Load freed weights again from their files; raises what loading raised at the start."""
        self._core.load_weights(LoadProgress(), read_pickle=read_pickle)

    def execute_model(self, scheduler_output: "SchedulerOutput") -> ModelRunnerOutput | None:
        """Launch a step. None tells vLLM to have its tokens drawn with `sample_tokens`."""
        if self._torch_drawing is not None:
            self._torch_drawing.note(scheduler_output)
        begin = time.perf_counter()
        self._core.launch(**step_arguments(scheduler_output, paged=self._paged))
        self._scheduled_ids = list(scheduler_output.num_scheduled_tokens)
        self._launched = LaunchedStep(
            begin,
            time.perf_counter(),
            len(self._scheduled_ids),
            scheduler_output.total_num_scheduled_tokens,
        )
        return None if self._scheduled_ids else EMPTY_MODEL_RUNNER_OUTPUT

    def sample_tokens(
        self, grammar_output: "GrammarOutput | None"
    ) -> "ModelRunnerOutput | PendingStep":
        """Have the launched step's tokens drawn; its output waits for them only when asked."""
        torch_draw = TorchDraw()
        if self._torch_drawing is not None:
            torch_draw = self._torch_drawing.draw(self._core, self._scheduled_ids, grammar_output)
        pending = self._core.draw(**self._grammar_arguments(grammar_output), given=torch_draw.given)
        trace = partial(self._trace.add, self._launched) if self._trace else None
        step = PendingStep(self._scheduled_ids, pending, torch_draw, trace)
        return step if self._scheduler_config.async_scheduling else step.get_output()

    def start_trace(self, trace: StepTrace) -> None:
        """Have the steps from here on traced."""
        if self._trace is not None:
            raise RuntimeError("The profiler is running; stop it first.")
        self._trace = trace

    def stop_trace(self) -> None:
        """Write the trace, if there is one."""
        trace, self._trace = self._trace, None
        if trace is not None:
            trace.write()

    def _grammar_arguments(self, grammar_output: "GrammarOutput | None") -> dict[str, Any]:
        if grammar_output is None:
            return {}
        num_words = -(-self._core.vocab_size // 32)
        bitmask: np.ndarray = grammar_output.grammar_bitmask[:, :num_words]
        return {
            "grammar_ids": grammar_output.structured_output_request_ids,
            "bitmask": bitmask if bitmask.flags.c_contiguous else bitmask.copy(),
        }


class PendingStep(AsyncModelRunnerOutput):
    """The output of a step that may still be computing."""

    def __init__(
        self,
        request_ids: list[str],
        pending: "_core.PendingOutput",
        torch_draw: TorchDraw,
        trace: "Callable[[_core.StepOutput], None] | None" = None,
    ) -> None:
        self._request_ids = request_ids
        self._pending = pending
        self._torch_draw = torch_draw
        self._trace = trace

    def get_output(self) -> ModelRunnerOutput:
        """Wait for the step and return its output."""
        step_output = self._pending.wait()
        if self._trace is not None:
            self._trace(step_output)
        output = model_runner_output(self._request_ids, step_output, self._torch_draw)
        if output.num_nans_in_logits:
            logger.error(
                "The logits of %s hold NaN or allow no token: ended with an error.",
                ", ".join(output.num_nans_in_logits),
            )
        return output

    def get_kv_connector_output(self) -> None:
        """Return None: the prefix cache's copies need no answer. vLLM 0.33 asks."""


def reasoning_arguments(config: "ReasoningConfig | None") -> dict[str, list[int]]:
    """Return the token ids of the marks around what a model thinks, for thinking budgets."""
    names = (
        "reasoning_start_token_ids",
        "reasoning_end_token_ids",
        "natural_reasoning_end_token_ids",
    )
    return {name: list(getattr(config, name, None) or ()) for name in names}


def step_arguments(scheduler_output: "SchedulerOutput", paged: bool = False) -> dict[str, Any]:
    """Translate what the scheduler wants into the arguments of the core's `step`.

    vLLM speaks two dialects (`VllmConfig.use_v2_model_runner`): a request that was preempted
    comes back among the cached ones with all its tokens, or as a new one.
    """
    cached = scheduler_output.scheduled_cached_reqs
    num_computed_tokens = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    updates = [
        (request_id, cached.all_token_ids[request_id]) for request_id in cached.resumed_req_ids
    ]
    prefix_cache = scheduler_output.kv_connector_metadata
    loading = set() if prefix_cache is None else {load[0] for load in prefix_cache.loads}
    new_requests, sessions = [], []
    for request in scheduler_output.scheduled_new_reqs:
        num_computed_tokens[request.req_id] = request.num_computed_tokens
        if request.num_computed_tokens and not paged and request.req_id not in loading:
            # More input for a session, which keeps what it has in the cache: nothing else is new
            # and computed in part without the prefix cache.
            sessions.append(_new_request(request))
        else:
            new_requests.append(_new_request(request))
    other = _block_arguments(scheduler_output) if paged else _prefix_cache_arguments(prefix_cache)
    return other | {
        "finished": list(scheduler_output.finished_req_ids),
        "preempted": list(scheduler_output.preempted_req_ids or ()),
        "new_requests": new_requests,
        "sessions": sessions,
        "updates": updates,
        "scheduled": [
            (request_id, num_computed_tokens[request_id], num_tokens)
            for request_id, num_tokens in scheduler_output.num_scheduled_tokens.items()
        ],
    }


def _prefix_cache_arguments(step: "PrefixCacheStep | None") -> dict[str, Any]:
    if step is None or step == _NOTHING_CACHED:
        return {}
    return {"prefix_cache": _core.PrefixCacheInput(**vars(step))}


def _block_arguments(scheduler_output: "SchedulerOutput") -> dict[str, list]:
    """Translate the blocks of a step. All layers are alike, so there is one group of them."""
    cached = scheduler_output.scheduled_cached_reqs
    blocks = [
        (request.req_id, request.block_ids[0], True)
        for request in scheduler_output.scheduled_new_reqs
    ]
    for request_id, block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
        resumed = request_id in cached.resumed_req_ids
        if block_ids is not None:
            blocks.append((request_id, block_ids[0], resumed))
    copies = [
        (copy.src_block_id, copy.dst_block_id)
        for copy in scheduler_output.kv_cache_block_copies or ()
    ]
    return {"blocks": blocks, "block_copies": copies}


def model_runner_output(
    request_ids: list[str], output: "_core.StepOutput", torch_draw: TorchDraw
) -> ModelRunnerOutput:
    """Translate the core's output for the scheduled requests `request_ids`, in their order."""
    token_ids = output.token_ids
    for row in torch_draw.failed:
        token_ids[row] = []
    failed = {request_ids[row]: 1 for row in [*output.failed, *torch_draw.failed]}
    logprobs = None if output.logprobs is None else LogprobsLists(*cast(tuple, output.logprobs))
    if logprobs is not None:
        torch_draw.put_logprobs(logprobs)
    prompts: dict[str, LogprobsTensors | None] = {}
    scores: dict[str, torch.Tensor] = {}
    for row, most_likely, of_token_ids in output.prompt_logprobs:
        if request_ids[row] in failed:
            continue  # vLLM takes no scores of a request without a token
        if most_likely is not None:
            prompts[request_ids[row]] = LogprobsTensors(*map(torch.from_numpy, most_likely))
        if of_token_ids is not None:
            scores[request_ids[row]] = torch.from_numpy(of_token_ids)
    return ModelRunnerOutput(
        req_ids=request_ids,
        req_id_to_index={request_id: row for row, request_id in enumerate(request_ids)},
        sampled_token_ids=token_ids,
        logprobs=logprobs,
        prompt_logprobs_dict=prompts,
        prompt_token_id_logprobs_dict=scores,
        num_nans_in_logits=failed or None,
    )


def _known_tokens(request: "NewRequestData") -> list[int]:
    return request.prefill_token_ids or request.prompt_token_ids


def _new_request(request: "NewRequestData") -> tuple:
    """Return id, tokens, how many of them were generated before a preemption, parameters."""
    tokens = _known_tokens(request)
    num_output_tokens = len(tokens) - len(request.prompt_token_ids)
    params = sampling.to_core(request.sampling_params)
    return request.req_id, tokens, num_output_tokens, params
