# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG003  the signatures are vLLM's
"""The platform class: what vLLM asks about the device, and the configuration it settles on."""

import os
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms.interface import Platform, PlatformEnum

from vllm_metal import envs, modelscope
from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.config import CacheConfig, VllmConfig
    from vllm.inputs import EngineInput
    from vllm.pooling_params import PoolingParams
    from vllm.sampling_params import SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.backends.registry import AttentionBackendEnum
    from vllm.v1.attention.selector import AttentionSelectorConfig

logger = get_logger(__name__)

_BLOCK_SIZE_VARIABLE = "VLLM_METAL_BLOCK_SIZE"

# Before vLLM imports the package, with less to say about it.
modelscope.require_package()


class MetalPlatform(Platform):
    """MLX's device, which vLLM takes for a torch CPU: torch computes nothing of the model."""

    _enum = PlatformEnum.OOT
    # vLLM builds torch devices of both names, so they must be ones that torch knows.
    device_type = "cpu"
    device_name = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"
    ray_device_key = ""  # no Ray
    device_control_env_var = "VLLM_METAL_VISIBLE_DEVICES"
    simple_compile_backend = "eager"
    # Of the model that this process serves; the largest, should it serve several.
    _vocab_size = 0

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """Dtypes of activations; `--dtype auto` falls back to the first."""
        return [torch.bfloat16, torch.float16, torch.float32]

    # The device

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """Return the name the system gives it, e.g. "Apple M3 Max"."""
        return cls._device_info(device_id)["name"]

    @classmethod
    def get_device_uuid(cls, device_id: int = 0) -> str:
        """Return an identifier; there is one device."""
        return f"{cls._device_info(device_id)['backend']}-0"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        """Return bytes the device can address: unified memory, or the GPU's own."""
        return cls._device_info(device_id)["total_memory"]

    @classmethod
    def get_current_memory_usage(cls, device: Any = None) -> float:
        """Return bytes that MLX has allocated."""
        from vllm_metal import _core

        return float(_core.memory_stats()["active"])

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        """Return 1: vLLM sizes torch kernels by this, and there are none."""
        return 1

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Do nothing; the core selects the device."""

    @classmethod
    def manual_seed_all(cls, seed: int) -> None:
        """Do nothing; torch draws no tokens."""

    @classmethod
    def inference_mode(cls) -> Any:
        """Return the context for what little runs in torch."""
        return torch.no_grad()

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Return False: there is nothing to copy to."""
        return False

    def is_sleep_mode_available(self) -> bool:
        """Return True: the worker frees weights and KV cache, and loads the weights again."""
        return True

    @staticmethod
    def _device_info(device_id: int) -> dict[str, Any]:
        if device_id != 0:
            raise ValueError(f"Metal only supports device 0, got {device_id}")
        from vllm_metal import _core

        return _core.device_info()

    # vLLM's kernels, which we do not use

    @classmethod
    def import_kernels(cls) -> None:
        """Do nothing: vLLM's compiled kernels are not needed."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """Do nothing: vLLM's kernels in Python are not needed."""

    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: "AttentionBackendEnum",
        attn_selector_config: "AttentionSelectorConfig",
        num_heads: int | None = None,
    ) -> str:
        """Name a backend for torch layers; the core does the model's attention."""
        return "vllm.v1.attention.backends.cpu_attn.CPUAttentionBackend"

    @classmethod
    def check_if_supports_dtype(cls, dtype: torch.dtype) -> None:
        """Accept; the dtypes are those of `supported_dtypes`."""

    # Configuration

    @classmethod
    def pre_register_and_update(cls, parser: "FlexibleArgumentParser | None" = None) -> None:
        """Refuse bad environment variables before a model is looked at."""
        if parser is None:
            envs.check()

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        """Refuse a quantisation method by name."""
        raise ValueError(
            f"The quantisation method {quant!r} is not supported by vLLM Metal yet. Supported are "
            "weights in bfloat16, float16 and float32, and MLX's affine weights (`quantization` "
            "in config.json, without a quant_method)."
        )

    @classmethod
    def apply_config_platform_defaults(cls, vllm_config: "VllmConfig") -> None:
        """Turn compilation off before vLLM decides on it: there is no torch model.

        ValueError if it was asked for.
        """
        from vllm.config import CompilationMode

        mode = vllm_config.compilation_config.mode
        if mode not in (None, CompilationMode.NONE):
            raise ValueError(
                f"vLLM Metal does not compile models with torch (mode={int(mode)}): the core "
                "computes them. Remove mode from --compilation-config."
            )
        vllm_config.compilation_config.mode = CompilationMode.NONE

    @classmethod
    def check_and_update_config(cls, vllm_config: "VllmConfig") -> None:
        """Refuse what cannot be done and settle what vLLM leaves to the platform.

        vLLM calls this again in the engine's process, on the config it returned from here.
        """
        from vllm_metal.custom_logits_processors import refuse_for_second_model_runner
        from vllm_metal.loading import check_overrides, check_weight_files
        from vllm_metal.unsupported import refuse_unsupported

        envs.check()
        refuse_unsupported(vllm_config)
        if vllm_config.model_config is not None:
            refuse_for_second_model_runner(vllm_config)
            check_weight_files(vllm_config.model_config)
            check_overrides(vllm_config.model_config)
            cls._vocab_size = max(cls._vocab_size, vllm_config.model_config.get_vocab_size())
        _settle_block_size(vllm_config.cache_config)
        if not envs.paged_attention():
            # Blocks do not hold the keys and values of the MLX-managed cache: none can be reused.
            vllm_config.cache_config.enable_prefix_caching = False
        _settle_execution(vllm_config)
        # A GPU context does not survive fork.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"

    @classmethod
    def update_block_size_for_backend(cls, vllm_config: "VllmConfig") -> None:
        """Keep the block size; vLLM would ask torch attention layers."""

    # Requests

    @classmethod
    def validate_request(
        cls, processed_inputs: "EngineInput", params: "SamplingParams | PoolingParams"
    ) -> None:
        """Refuse a request that the core cannot do; vLLM answers with HTTP 400."""
        from vllm.sampling_params import SamplingParams

        from vllm_metal.sampling import refuse_unknown_tokens, refuse_unsupported

        if isinstance(params, SamplingParams):
            refuse_unsupported(params)
            prompt = processed_inputs.get("prompt_token_ids") or []
            refuse_unknown_tokens(prompt, params, cls._vocab_size)


def _settle_block_size(cache_config: "CacheConfig") -> None:
    """Take VLLM_METAL_BLOCK_SIZE unless --block-size is given; both must not differ."""
    if not cache_config.user_specified_block_size:
        cache_config.block_size = envs.block_size()
    elif envs.block_size_is_set() and cache_config.block_size != envs.block_size():
        raise ValueError(
            f"--block-size {cache_config.block_size} and VLLM_METAL_BLOCK_SIZE="
            f"{envs.block_size()} differ; give one of them."
        )
    if envs.paged_attention():
        _check_paged_block_size(cache_config)


def _check_paged_block_size(cache_config: "CacheConfig") -> None:
    from vllm_metal import _core

    if cache_config.block_size not in _core.PAGED_BLOCK_SIZES:
        option = "--block-size" if cache_config.user_specified_block_size else _BLOCK_SIZE_VARIABLE
        allowed = ", ".join(map(str, _core.PAGED_BLOCK_SIZES))
        raise ValueError(
            f"Paged attention: {option} must be one of {allowed} tokens but is "
            f"{cache_config.block_size}."
        )


def _settle_execution(vllm_config: "VllmConfig") -> None:
    from vllm.config import CompilationMode, CUDAGraphMode

    parallel_config = vllm_config.parallel_config
    if parallel_config.worker_cls == "auto":
        parallel_config.worker_cls = "vllm_metal.worker.MetalWorker"
    parallel_config.disable_custom_all_reduce = True

    compilation_config = vllm_config.compilation_config
    compilation_config.mode = CompilationMode.NONE
    compilation_config.cudagraph_mode = CUDAGraphMode.NONE
    compilation_config.cudagraph_capture_sizes = []
