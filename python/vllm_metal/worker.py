# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG002  the signatures are vLLM's
"""The worker: vLLM's calls about the device, the model and the KV cache, passed on."""

import time
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from vllm_metal import _core, log
from vllm_metal.memory import CacheSize, format_bytes, plan_memory, start_line
from vllm_metal.model_runner import MetalModelRunner
from vllm_metal.prefix_cache import PrefixCacheSize
from vllm_metal.step_trace import StepTrace

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheSpec
    from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput

logger = log.get_logger(__name__)

_SLEEP_TAGS = ("weights", "kv_cache")  # vLLM's names


class MetalWorker(WorkerBase):
    """One process on one device; vLLM calls its methods in the order they stand here."""

    model_runner: MetalModelRunner | None
    _device_info: dict[str, Any]  # as found before anything was loaded
    _num_prefix_cache_blocks = 0  # as planned

    def init_device(self) -> None:
        """Select MLX's device and note its memory before anything is loaded."""
        log.forward_core_log()
        self.device = torch.device("cpu")
        self._device_info = _core.device_info()

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """Load the weights."""
        if load_dummy_weights:
            _refuse("loading of dummy weights")
        self.model_runner = MetalModelRunner(self.vllm_config)

    def get_kv_cache_spec(self) -> dict[str, "KVCacheSpec"]:
        """Say what each layer keeps for a token."""
        return self._runner.kv_cache_spec()

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Name a layout; the core lays the cache out as it likes."""
        return ["LBNHC"]

    def set_kv_cache_layout(self, kv_cache_layout: str, *args: Any) -> None:
        """Note the layout. vLLM 0.33 passes the interleaving of context parallelism as well."""
        super().set_kv_cache_layout(kv_cache_layout, *args)

    def determine_available_memory(self) -> int:
        """Plan memory and set MLX's limits; returns bytes for vLLM's part of the KV cache."""
        runner = self._runner
        plan = plan_memory(
            self._device_info,
            self.vllm_config,
            weight_bytes=runner.weight_bytes,
            activation_bytes=runner.measure_activations(self._device_info["backend"]),
            block_bytes=self._block_bytes,
        )
        self._num_prefix_cache_blocks = plan.prefix_cache // self._block_bytes
        logger.info(plan.table())
        _core.apply_memory_limits(plan)
        return plan.kv_cache

    def update_max_model_len(self, max_model_len: int) -> None:
        """Note the length that vLLM lowered to what the KV cache holds."""
        self.model_config.max_model_len = max_model_len

    def initialize_from_config(self, kv_cache_config: "KVCacheConfig") -> None:
        """Give the KV cache its capacity."""
        num_prefix_blocks = self._num_prefix_cache_blocks
        self._runner.initialize_kv_cache(kv_cache_config, num_prefix_blocks)
        logger.info(
            start_line(
                self._device_info,
                weight_bytes=self._runner.weight_bytes,
                kv_cache=self._size_of(kv_cache_config.num_blocks),
                prefix_cache=self._size_of(num_prefix_blocks) if num_prefix_blocks else None,
            )
        )

    def get_kv_connector_handshake_metadata(
        self,
    ) -> dict[tuple[int, int], PrefixCacheSize] | None:
        """Tell the scheduler's half of the prefix cache its size, by ranks."""
        if not self._num_prefix_cache_blocks:
            return None
        return {(0, 0): PrefixCacheSize(self._num_prefix_cache_blocks)}

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Run the model once; returns seconds."""
        start = time.perf_counter()
        self._runner.warm_up()
        return CompilationTimes(language_model=time.perf_counter() - start, encoder=0.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Name the tasks of the API."""
        return ("generate",)

    def execute_model(self, scheduler_output: "SchedulerOutput") -> "ModelRunnerOutput | None":
        """Launch a step."""
        return self._runner.execute_model(scheduler_output)

    def sample_tokens(
        self, grammar_output: "GrammarOutput | None"
    ) -> "ModelRunnerOutput | AsyncModelRunnerOutput":
        """Have the tokens of the launched step drawn, within the grammars of its requests."""
        return self._runner.sample_tokens(grammar_output)

    def take_draft_token_ids(self) -> None:
        """Return None: there is no speculative decoding."""

    def execute_dummy_batch(self) -> None:
        """Do nothing: idle ranks of data parallelism need it, and there is one rank."""

    def check_health(self) -> None:
        """Raise unless a model is loaded."""
        assert self._runner is not None

    def synchronize_device(self) -> None:
        """Do nothing: whoever reads the output of a step waits for it."""

    def reset_encoder_cache(self) -> None:
        """Do nothing: there is no encoder."""

    def sleep(self, level: int = 1) -> None:
        """Free weights and KV cache.

        Both levels do: level 1 of other platforms keeps the weights in the CPU's memory, which is
        no other here. They come back from their files.
        """
        self.discard(_SLEEP_TAGS)

    def discard(self, tags: tuple[str, ...]) -> None:
        """Free "weights", "kv_cache" or both."""
        before = _core.memory_stats()["active"]
        self._runner.free(tags)
        after = _core.memory_stats()["active"]
        logger.info("Freed %s, %s are in use.", format_bytes(before - after), format_bytes(after))

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Load the weights; the KV cache takes memory when it is written."""
        if tags is None or "weights" in tags:
            self._runner.load_weights()

    def profile(
        self, is_start: bool = True, profile_prefix: str | None = None, **bounds: int
    ) -> None:
        """Start a trace of steps, or write it.

        `bounds` are delay_iterations and max_iterations of this session.
        """
        if is_start:
            config = self.vllm_config.profiler_config
            self._runner.start_trace(StepTrace.begin(config, profile_prefix, **bounds))
        else:
            self._runner.stop_trace()

    def shutdown(self) -> None:
        """Free the model and the KV cache."""
        self.model_runner = None
        _core.release_memory_limits()
        logger.info("Model and KV cache are freed; nothing is wired any more.")
        log.silence_core_log()

    # What vLLM offers and this release does not do

    def get_model(self) -> NoReturn:
        _refuse("access to the model as a torch module")

    def add_lora(self, lora_request: Any) -> bool:
        _refuse("LoRA")

    def remove_lora(self, lora_id: int) -> bool:
        _refuse("LoRA")

    def pin_lora(self, lora_id: int) -> bool:
        _refuse("LoRA")

    def list_loras(self) -> set[int]:
        """Return no adapters."""
        return set()

    def _size_of(self, num_blocks: int) -> CacheSize:
        block_size = self.vllm_config.cache_config.block_size
        return CacheSize(num_blocks * self._block_bytes, num_blocks * block_size)

    @property
    def _block_bytes(self) -> int:
        return sum(spec.page_size_bytes for spec in self._runner.kv_cache_spec().values())

    @property
    def _runner(self) -> MetalModelRunner:
        if self.model_runner is None:
            raise RuntimeError("The model is not loaded, or the worker was shut down.")
        return self.model_runner


def _refuse(feature: str) -> NoReturn:
    raise NotImplementedError(f"{feature[0].upper()}{feature[1:]} is not supported yet.")
