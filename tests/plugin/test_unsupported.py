# SPDX-License-Identifier: Apache-2.0
import copy
from types import SimpleNamespace

import pytest
from vllm_metal.unsupported import SETTINGS, refuse_unsupported

from tests.plugin.tiny_model import copy_with_config

# Engine arguments and what the refusal must name.
REFUSED_ARGUMENTS = [
    ({"tensor_parallel_size": 2}, "tensor parallelism .*=2"),
    ({"pipeline_parallel_size": 2}, "pipeline parallelism .*=2"),
    ({"data_parallel_size": 2}, "data parallelism .*=2"),
    ({"distributed_executor_backend": "mp"}, "distributed executor .*'mp'"),
    ({"device_ids": [1]}, "choice among devices .*--device-ids"),
    ({"enable_lora": True}, "LoRA"),
    (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        "speculative decoding",
    ),
    ({"runner": "pooling", "convert": "embed"}, "pooling or draft runner"),
    ({"enable_prompt_embeds": True}, "prompt embeddings"),
    (
        {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
        "KV transfer",
    ),
    (
        {"kv_events_config": {"enable_kv_cache_events": True}},
        "KV cache events .*set VLLM_METAL_USE_PAGED_ATTENTION=1",
    ),
    ({"cpu_offload_gb": 1}, "CPU offload"),
    ({"offload_group_size": 2}, "prefetching CPU offload"),
    ({"kv_offloading_size": 1.0}, "offload of the KV cache"),
    ({"kv_cache_dtype": "fp8"}, "KV cache dtype .*'fp8'"),
    ({"load_format": "dummy"}, "load format .*'dummy'"),
    ({"model_impl": "transformers"}, "another implementation of the model"),
    ({"attention_backend": "FLASH_ATTN"}, "choice of attention backend"),
    ({"weight_transfer_config": {"backend": "ipc"}}, "weight transfer"),
    ({"additional_config": {"key": 1}}, "additional_config"),
    ({"moe_backend": "triton"}, "kernels for experts .*'triton'.*--moe-backend"),
    ({"linear_backend": "cutlass"}, "kernels for linear layers .*'cutlass'"),
    ({"enable_layerwise_nvtx_tracing": True}, "NVTX"),
    (
        {
            "profiler_config": {
                "profiler": "torch",
                "torch_profiler_dir": "/tmp",
                "torch_profiler_record_shapes": True,
            }
        },
        "profiled shapes .*--profiler-config",
    ),
    ({"compilation_config": {"mode": 3}}, "compile .*mode=3.*--compilation-config"),
    # Refused on the way there, by vLLM's own checks of the platform.
    (
        {
            "kv_transfer_config": {"kv_connector": "Other", "kv_role": "kv_both"},
            "enable_prefix_caching": True,
        },
        "KV transfer",
    ),
    ({"quantization": "fp8"}, "quantisation method 'fp8'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED_ARGUMENTS, ids=str)
def test_engine_arguments_are_refused_by_name(engine_config, arguments, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        engine_config(**arguments)


def test_kv_events_are_accepted_with_the_paged_cache(engine_config, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", "1")
    config = engine_config(kv_events_config={"enable_kv_cache_events": True})
    assert config.cache_config.enable_prefix_caching


@pytest.fixture
def accepted_config(engine_config):
    return engine_config()


def test_all_settings_exist_in_this_vllm(accepted_config):
    """A setting that vLLM renamed would no longer be looked at."""
    for setting in SETTINGS:
        at = accepted_config
        for name in setting.path.split("."):
            if at is None:  # an optional part that is not configured
                break
            assert hasattr(at, name), setting.path
            at = getattr(at, name)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.path)
def test_each_setting_is_refused_with_advice(accepted_config, setting):
    config = copy.deepcopy(accepted_config)
    *parents, last = setting.path.split(".")
    at = config
    for name in parents:
        if getattr(at, name) is None:
            object.__setattr__(at, name, SimpleNamespace())
        at = getattr(at, name)
    object.__setattr__(at, last, 2)  # not neutral for any of them
    with pytest.raises(ValueError, match="does not support this configuration yet") as error:
        refuse_unsupported(config)
    assert f"{setting.feature} ({last}=2): {setting.advice}." in str(error.value)


def test_all_complaints_are_raised_together(engine_config):
    with pytest.raises(ValueError, match="LoRA") as error:
        engine_config(enable_lora=True, enable_prompt_embeds=True, load_format="dummy")
    assert "prompt embeddings" in str(error.value)
    assert "load format" in str(error.value)


# Models


def test_unsupported_architecture_lists_the_supported(accepted_config):
    accepted_config.model_config.hf_config.architectures = ["Qwen2ForCausalLM"]
    with pytest.raises(
        ValueError,
        match=r"architecture Qwen2ForCausalLM .*one of LlamaForCausalLM, MistralForCausalLM",
    ):
        refuse_unsupported(accepted_config)


def test_sliding_window_is_refused(engine_config):
    with pytest.raises(ValueError, match=r"sliding_window=64.*--max-model-len 64"):
        engine_config(hf_overrides={"sliding_window": 64})


@pytest.mark.parametrize("arguments", [{"max_model_len": 64}, {"disable_sliding_window": True}])
def test_sliding_window_that_no_sequence_exceeds(engine_config, arguments):
    config = engine_config(hf_overrides={"sliding_window": 64}, **arguments)
    assert config.model_config.max_model_len == 64


@pytest.mark.parametrize(
    "overrides", [{"use_sliding_window": False}, {"layer_types": ["full_attention"] * 2}]
)
def test_sliding_window_that_is_off(engine_config, overrides):
    config = engine_config(hf_overrides={"sliding_window": 64, **overrides})
    assert config.model_config.max_model_len == 512


def test_alibi_is_refused(engine_config):
    with pytest.raises(ValueError, match="ALiBi"):
        engine_config(hf_overrides={"alibi": True})


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_quantisation_methods_are_refused_by_name(engine_config, tiny_llama, tmp_path, method):
    model = copy_with_config(
        tiny_llama,
        tmp_path / "model",
        quantization_config={"quant_method": method, "bits": 4, "group_size": 32},
    )
    with pytest.raises(ValueError, match=f"quantisation method '(auto_)?{method}'"):
        engine_config(model=str(model))


def test_mlx_quantisation_is_accepted(engine_config, tiny_llama, tmp_path):
    quantization = {"group_size": 32, "bits": 4, "mode": "affine"}
    model = copy_with_config(
        tiny_llama,
        tmp_path / "model",
        quantization=quantization,
        quantization_config=quantization,
    )
    assert engine_config(model=str(model)).model_config.quantization is None
