# SPDX-License-Identifier: Apache-2.0
"""What vLLM can be configured to do and this plugin cannot do yet, refused by name at start-up.

`SETTINGS` is the table: where vLLM keeps a setting, what it is called, what to do instead. The
functions below it judge the model. All complaints are raised together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

from vllm_metal import envs, prefix_cache_settings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig


@dataclass(frozen=True)
class Setting:
    """A setting of VllmConfig that must keep a neutral value."""

    path: str  # attributes from VllmConfig down
    feature: str
    advice: str
    # Values that are fine. Without any: None, False, zero and empty ones.
    allowed: tuple = ()
    paged: bool = False  # whether all values are fine with the paged KV cache
    is_ours: Callable[[Any], bool] = lambda _value: False  # whether we set that value ourselves

    def read(self, vllm_config: "VllmConfig") -> Any:
        """Return the value, None where a part of the path is None or not in this vLLM."""
        return reduce(lambda at, name: getattr(at, name, None), self.path.split("."), vllm_config)

    def is_neutral(self, value: Any) -> bool:
        """Whether `value` leaves the feature off, or it is there."""
        if self.paged and envs.paged_attention():
            return True
        if value is None or self.is_ours(value):
            return True
        return value in self.allowed if self.allowed else not value


_TRACE = "a trace has steps with their requests and tokens; remove it from --profiler-config"
_ONE_DEVICE = "one process computes on one device; leave {} at 1"

SETTINGS = (
    # Parallelism and processes
    Setting(
        "parallel_config.tensor_parallel_size",
        "tensor parallelism",
        _ONE_DEVICE.format("--tensor-parallel-size"),
        allowed=(1,),
    ),
    Setting(
        "parallel_config.pipeline_parallel_size",
        "pipeline parallelism",
        _ONE_DEVICE.format("--pipeline-parallel-size"),
        allowed=(1,),
    ),
    Setting(
        "parallel_config.data_parallel_size",
        "data parallelism",
        "leave --data-parallel-size at 1; start one server a port for replicas",
        allowed=(1,),
    ),
    Setting(
        "parallel_config.prefill_context_parallel_size",
        "prefill context parallelism",
        _ONE_DEVICE.format("--prefill-context-parallel-size"),
        allowed=(1,),
    ),
    Setting(
        "parallel_config.decode_context_parallel_size",
        "decode context parallelism",
        _ONE_DEVICE.format("--decode-context-parallel-size"),
        allowed=(1,),
    ),
    Setting("parallel_config.nnodes", "more than one node", "leave --nnodes at 1", allowed=(1,)),
    Setting(
        "parallel_config.distributed_executor_backend",
        "a distributed executor",
        "remove --distributed-executor-backend",
        allowed=("uni",),
    ),
    Setting(
        "parallel_config.assigned_physical_gpu_ids",
        "a choice among devices",
        "there is device 0 only; remove --device-ids",
        allowed=([0],),
    ),
    Setting(
        "parallel_config.enable_expert_parallel",
        "expert parallelism",
        "remove --enable-expert-parallel",
    ),
    Setting("parallel_config.enable_eplb", "expert load balancing", "remove --enable-eplb"),
    Setting("parallel_config.enable_elastic_ep", "elastic expert parallelism", "remove it"),
    Setting("parallel_config.enable_dbo", "dual batch overlap", "remove --enable-dbo"),
    Setting("parallel_config.ubatch_size", "micro-batches", "remove --ubatch-size"),
    Setting(
        "parallel_config.enable_fault_tolerance",
        "fault tolerance",
        "remove --enable-fault-tolerance",
    ),
    # KV cache
    Setting(
        "cache_config.cache_dtype",
        "a KV cache dtype",
        "the cache has the model's dtype; remove --kv-cache-dtype",
        allowed=("auto",),
    ),
    Setting(
        "cache_config.kv_cache_dtype_skip_layers",
        "KV cache dtypes by layer",
        "remove --kv-cache-dtype-skip-layers",
    ),
    Setting(
        "cache_config.kv_sharing_fast_prefill",
        "fast prefill by KV sharing",
        "remove --kv-sharing-fast-prefill",
    ),
    Setting(
        "cache_config.kv_offloading_size",
        "offload of the KV cache",
        "remove --kv-offloading-size",
    ),
    Setting(
        "kv_transfer_config",
        "KV transfer",
        "remove --kv-transfer-config",
        is_ours=prefix_cache_settings.is_ours,
    ),
    Setting(
        "kv_events_config.enable_kv_cache_events",
        "KV cache events",
        "they tell of vLLM's blocks; set VLLM_METAL_USE_PAGED_ATTENTION=1 or remove "
        "--kv-events-config",
        paged=True,
    ),
    Setting("ec_transfer_config", "encoder cache transfer", "remove --ec-transfer-config"),
    Setting(
        "ec_manager_config.encoder_cache_manager_cls",
        "an encoder cache manager",
        "remove --ec-manager-config",
    ),
    # Weights
    Setting("offload_config.uva.cpu_offload_gb", "CPU offload", "remove --cpu-offload-gb"),
    Setting(
        "offload_config.prefetch.offload_group_size",
        "prefetching CPU offload",
        "remove --offload-group-size",
    ),
    Setting(
        "offload_config.offload_backend",
        "an offload backend",
        "remove --offload-backend",
        allowed=("auto",),
    ),
    Setting(
        "load_config.load_format",
        "this load format",
        "safetensors are read; leave --load-format at auto",
        allowed=("auto", "hf", "safetensors"),
    ),
    Setting(
        "load_config.model_loader_extra_config",
        "a configured model loader",
        "remove --model-loader-extra-config",
    ),
    Setting("model_config.model_weights", "weights in object storage", "name a local folder"),
    Setting(
        "model_config.config_format",
        "this config format",
        "leave --config-format at auto",
        allowed=("auto", "hf"),
    ),
    Setting(
        "model_config.quantization_config",
        "quantisation while loading",
        "use weights that are quantised already; remove --quantization-config",
    ),
    Setting("weight_transfer_config", "weight transfer", "remove --weight-transfer-config"),
    Setting("engram_config", "n-gram embeddings", "remove --engram-config"),
    # Models
    Setting(
        "model_config.runner_type",
        "a pooling or draft runner",
        "serve a model that generates text; remove --runner",
        allowed=("generate",),
    ),
    Setting(
        "model_config.convert_type",
        "conversion of a model",
        "remove --convert",
        allowed=("none",),
    ),
    Setting("model_config.multimodal_config", "a multimodal model", "serve a text-only model"),
    Setting(
        "model_config.enable_prompt_embeds",
        "prompt embeddings",
        "remove --enable-prompt-embeds",
    ),
    Setting(
        "model_config.model_impl",
        "another implementation of the model",
        "leave --model-impl at auto",
        allowed=("auto", "vllm"),
    ),
    Setting("model_config.model_class_overrides", "other model classes", "remove the overrides"),
    Setting(
        "model_config.attention_chunk_size",
        "chunked local attention",
        "serve a model with full attention",
    ),
    Setting("lora_config", "LoRA", "merge the adapter into the model; remove --enable-lora"),
    Setting("speculative_config", "speculative decoding", "remove --speculative-config"),
    Setting("diffusion_config", "diffusion language models", "remove --diffusion-config"),
    # Sampling and outputs
    Setting("model_config.return_sampling_mask", "sampling masks", "remove the option"),
    Setting("model_config.use_fp64_gumbel", "sampling in float64", "remove the option"),
    Setting("model_config.enable_trace_replay", "trace replay", "remove --enable-trace-replay"),
    Setting("watermark_config", "watermarks", "remove --watermark-config"),
    Setting(
        "aux_output_config.enable_return_routed_experts",
        "routed experts in the output",
        "remove --enable-return-routed-experts",
    ),
    # The rest
    Setting(
        "attention_config.backend",
        "a choice of attention backend",
        "the device decides; remove --attention-backend",
    ),
    Setting("attention_config.backend_per_kind", "attention backends by kind", "remove them"),
    Setting(
        "kernel_config.moe_backend",
        "a choice of kernels for experts",
        "the core has its own; remove --moe-backend",
        allowed=("auto",),
    ),
    Setting(
        "kernel_config.linear_backend",
        "a choice of kernels for linear layers",
        "the core has its own; remove --linear-backend",
        allowed=("auto",),
    ),
    Setting(
        "kernel_config.linear_backend_per_quant",
        "a choice of kernels by quantisation",
        "the core has its own; remove it from --kernel-config",
    ),
    Setting(
        "observability_config.enable_layerwise_nvtx_tracing",
        "NVTX ranges of layers",
        "remove --enable-layerwise-nvtx-tracing",
    ),
    Setting(
        "observability_config.cudagraph_metrics",
        "metrics of CUDA graphs",
        "there are none; remove --cudagraph-metrics",
    ),
    Setting("attention_config.use_non_causal", "non-causal attention", "remove the option"),
    Setting(
        "profiler_config.profiler",
        "this profiler",
        "--profiler-config.profiler torch writes a trace of steps",
        allowed=("torch",),
    ),
    Setting("profiler_config.torch_profiler_activities", "a choice of profiled activities", _TRACE),
    Setting("profiler_config.torch_profiler_record_shapes", "profiled shapes", _TRACE),
    Setting("profiler_config.torch_profiler_with_memory", "profiled memory", _TRACE),
    Setting("profiler_config.torch_profiler_with_flops", "profiled operations", _TRACE),
    Setting("profiler_config.capture_torch_profiler", "profiles of captured graphs", _TRACE),
    Setting("profiler_config.detailed_trace_annotation", "detailed annotations", _TRACE),
    Setting("profiler_config.wait_iterations", "steps that a profile waits", _TRACE),
    Setting("profiler_config.warmup_iterations", "steps to warm up a profile", _TRACE),
    Setting("additional_config", "additional_config", "the plugin reads none; remove it"),
)


def refuse_unsupported(vllm_config: "VllmConfig") -> None:
    """Raise ValueError that lists what is configured and cannot be done, with what to do."""
    complaints = [
        f"{setting.feature} ({setting.path.split('.')[-1]}={_shown(value)}): {setting.advice}"
        for setting in SETTINGS
        if not setting.is_neutral(value := setting.read(vllm_config))
    ]
    if vllm_config.model_config is not None:
        complaints += _model_complaints(vllm_config.model_config)
    if complaints:
        raise ValueError(
            "vLLM Metal does not support this configuration yet:\n  - "
            + ".\n  - ".join(complaints)
            + "."
        )


def _shown(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


def _model_complaints(model_config: "ModelConfig") -> Iterator[str]:
    yield from _architecture_complaints(model_config)
    yield from _attention_complaints(model_config)


def _architecture_complaints(model_config: "ModelConfig") -> Iterator[str]:
    from vllm_metal import _core

    supported = _core.supported_architectures()
    architectures = getattr(model_config.hf_config, "architectures", None) or []
    if not set(architectures) & set(supported):
        yield (
            f"the architecture {', '.join(architectures) or 'of a config without architectures'}"
            f" of {model_config.model}: serve one of {', '.join(sorted(supported))}"
        )


def active_sliding_window(model_config: "ModelConfig") -> int | None:
    """Return the window of tokens that limits attention, None when no sequence exceeds it."""
    hf_config = model_config.hf_text_config
    window = model_config.get_sliding_window()
    layer_types = getattr(hf_config, "layer_types", None)
    if window is None or getattr(hf_config, "use_sliding_window", True) is False:
        return None
    if layer_types and "sliding_attention" not in layer_types:
        return None
    return window if window < model_config.max_model_len else None


def _attention_complaints(model_config: "ModelConfig") -> Iterator[str]:
    window = active_sliding_window(model_config)
    if window is not None:
        yield (
            f"sliding window attention (sliding_window={window}): with --max-model-len {window} "
            "no sequence exceeds the window"
        )
    hf_config = model_config.hf_text_config
    if getattr(hf_config, "alibi", False) or (
        getattr(hf_config, "position_embedding_type", None) == "alibi"
    ):
        yield "ALiBi position biases: serve a model with rotary position embedding"
