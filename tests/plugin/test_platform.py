# SPDX-License-Identifier: Apache-2.0
import os
import re
import subprocess
import sys

import pytest

from tests.plugin.fake_core import MEMORY


def test_vllm_chooses_our_platform():
    from vllm.platforms import current_platform
    from vllm_metal.platform import MetalPlatform

    assert type(current_platform) is MetalPlatform


@pytest.mark.parametrize("value", ["0", "false", "Off", "NO"])
def test_register_steps_aside(monkeypatch, value):
    from vllm_metal import register

    monkeypatch.setenv("VLLM_METAL_USE_MLX", value)
    assert register() is None


@pytest.mark.parametrize("value", [None, "1", "true", "nonsense"])
def test_register_names_the_platform(monkeypatch, value):
    """Nonsense too: the platform refuses it where errors are seen."""
    from vllm_metal import register

    monkeypatch.delenv("VLLM_METAL_USE_MLX", raising=False)
    if value is not None:
        monkeypatch.setenv("VLLM_METAL_USE_MLX", value)
    assert register() == "vllm_metal.platform.MetalPlatform"


def test_registering_is_light():
    """It runs twice in every process of vLLM."""
    script = (
        "import sys, vllm_metal; vllm_metal.register(); "
        "print([m for m in ('torch', 'vllm', 'mlx', 'vllm_metal._core') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert output.stdout.strip() == "[]"


def test_settled_configuration(engine_config):
    from vllm.config import CompilationMode, CUDAGraphMode

    config = engine_config()
    assert config.parallel_config.worker_cls == "vllm_metal.worker.MetalWorker"
    assert config.parallel_config.distributed_executor_backend == "uni"
    assert config.parallel_config.disable_custom_all_reduce
    assert config.cache_config.block_size == 16
    assert not config.cache_config.enable_prefix_caching
    assert config.scheduler_config.enable_chunked_prefill
    assert config.scheduler_config.async_scheduling
    assert config.compilation_config.mode == CompilationMode.NONE
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.NONE
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_settling_again_changes_nothing(engine_config):
    """The engine's process does it on the configuration it is sent."""
    config = engine_config(block_size=32)
    before = str(config)
    config.__post_init__()
    assert config.cache_config.block_size == 32
    assert str(config) == before


def test_asynchronous_scheduling_can_be_turned_off(engine_config):
    assert engine_config(async_scheduling=False).scheduler_config.async_scheduling is False


def test_batch_defaults_do_not_grow_with_unified_memory(fake_core, tiny_llama, monkeypatch):
    """A Mac with 192 GiB is not an H100."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    monkeypatch.setattr(fake_core, "MEMORY", 192 << 30)
    args = EngineArgs(model=str(tiny_llama))
    scheduler_config = args.create_engine_config(UsageContext.OPENAI_API_SERVER).scheduler_config
    assert scheduler_config.max_num_seqs == 256
    assert scheduler_config.max_num_batched_tokens == 2048


@pytest.mark.parametrize(
    ("option", "variable", "block_size"),
    [(None, None, 16), (None, "32", 32), (64, None, 64), (32, "32", 32)],
)
def test_block_size(engine_config, monkeypatch, option, variable, block_size):
    if variable is not None:
        monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", variable)
    assert engine_config(block_size=option).cache_config.block_size == block_size


def test_block_sizes_that_differ(engine_config, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", "32")
    with pytest.raises(ValueError, match="--block-size 64 and VLLM_METAL_BLOCK_SIZE=32 differ"):
        engine_config(block_size=64)


@pytest.mark.parametrize("option", [None, True, False])
@pytest.mark.parametrize("variable", [None, "1", "0"])
@pytest.mark.parametrize("mode", ["paged", "managed"])
def test_prefix_caching(engine_config, monkeypatch, mode, option, variable):
    """vLLM's own in the paged mode, on unless told otherwise; a connector in the other."""
    from vllm_metal.platform import MetalPlatform

    default = mode == "paged" if variable is None else variable == "1"
    is_on = default if option is None else option
    monkeypatch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", str(int(mode == "paged")))
    if variable is not None:
        monkeypatch.setenv("VLLM_METAL_PREFIX_CACHE", variable)
    config = engine_config(enable_prefix_caching=option)
    MetalPlatform.check_and_update_config(config)  # as vLLM does in the engine's process
    assert config.cache_config.enable_prefix_caching == (mode == "paged" and is_on)
    connector = config.kv_transfer_config and config.kv_transfer_config.kv_connector
    ours = mode == "managed" and is_on
    assert connector == ("MetalPrefixCacheConnector" if ours else None)


def test_prefix_caching_of_arguments_that_are_used_again(fake_core, tiny_llama):
    from vllm.engine.arg_utils import EngineArgs

    arguments = EngineArgs(model=str(tiny_llama), enable_prefix_caching=True)
    for _ in range(2):
        config = arguments.create_engine_config()
        assert config.kv_transfer_config.kv_connector == "MetalPrefixCacheConnector"


def test_what_is_said_of_prefix_caching(engine_config, monkeypatch):
    from vllm_metal import prefix_cache_settings

    said = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            prefix_cache_settings.logger, level, lambda text, *values: said.append(text % values)
        )
    monkeypatch.setenv("VLLM_METAL_PREFIX_CACHE", "1")
    engine_config(enable_prefix_caching=False)
    monkeypatch.delenv("VLLM_METAL_PREFIX_CACHE")
    engine_config(enable_prefix_caching=True)
    assert [text.split(".")[0].split(",")[0] for text in said] == [
        "VLLM_METAL_PREFIX_CACHE=1 is ignored: --no-enable-prefix-caching is given",
        "--enable-prefix-caching switches on the prefix cache of the MLX-managed KV cache",
    ]


@pytest.mark.parametrize("way", ["option", "variable"])
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 128])
def test_block_sizes_of_paged_attention(engine_config, monkeypatch, block_size, way):
    monkeypatch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", "1")
    if way == "variable":
        monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", str(block_size))
    config = engine_config(block_size=block_size if way == "option" else None)
    assert config.cache_config.block_size == block_size


@pytest.mark.parametrize("block_size", [1, 24, 256])
def test_block_sizes_that_paged_attention_refuses(engine_config, monkeypatch, block_size):
    message = "Paged attention: {} must be one of 8, 16, 32, 64, 128 tokens but is {}."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_METAL_BLOCK_SIZE", str(block_size))
        assert engine_config().cache_config.block_size == block_size  # the MLX-managed mode can
    monkeypatch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", "1")
    with pytest.raises(ValueError, match=re.escape(message.format("--block-size", block_size))):
        engine_config(block_size=block_size)
    monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", str(block_size))
    variable = message.format("VLLM_METAL_BLOCK_SIZE", block_size)
    with pytest.raises(ValueError, match=re.escape(variable)):
        engine_config()


def test_environment_is_checked_before_the_model_is_looked_at(
    engine_config, fake_core, monkeypatch
):
    def refuse():
        raise ValueError("[environment] VLLM_MLX_DEVICE must be gpu or cpu but is 'tpu'.")

    monkeypatch.setattr(fake_core, "environment", refuse)
    with pytest.raises(ValueError, match="VLLM_MLX_DEVICE must be gpu or cpu"):
        engine_config(quantization="fp8")  # which the model's own checks would refuse


def test_device_facts_come_from_the_core(fake_core):
    from vllm.platforms import current_platform

    assert current_platform.get_device_name() == "Fake device"
    assert current_platform.get_device_total_memory() == MEMORY
    assert current_platform.get_current_memory_usage() == 5 << 20
    with pytest.raises(ValueError, match="Metal only supports device 0, got 1"):
        current_platform.get_device_name(1)


def test_our_variables_are_known_to_vllm(engine_config, fake_core):
    import vllm.envs
    from vllm_metal import envs

    engine_config()  # loads the general plugins
    names = [variable["name"] for variable in fake_core.environment()]
    assert list(envs.NAMES) == names
    assert set(names) <= set(vllm.envs.environment_variables)
