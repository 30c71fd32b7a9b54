# SPDX-License-Identifier: Apache-2.0
"""What VLLM_METAL_USE_MLX=0 says where vLLM has no kernels, and that it is silent elsewhere."""

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import interface
from vllm_metal import torch_backend

MESSAGE = "leaves the computing to vLLM's PyTorch back end"
KINDS = interface.PlatformEnum


def platform(kind):
    chosen = interface.Platform()
    chosen._enum = kind
    return chosen


@pytest.fixture
def package(tmp_path):
    """Make a folder with empty files, in the place of vLLM's package."""

    def make(*names):
        for name in ("platforms.py", *names):
            (tmp_path / name).touch()
        return [str(tmp_path)]

    return make


@pytest.mark.parametrize("kind", [KINDS.CPU, KINDS.CUDA, KINDS.ROCM, KINDS.UNSPECIFIED])
def test_a_pure_python_build_has_no_kernels(package, kind):
    assert not torch_backend.has_kernels(platform(kind), package())


@pytest.mark.parametrize("kind", [KINDS.CPU, KINDS.CUDA, KINDS.ROCM])
@pytest.mark.parametrize("module", ["_C", "_C_AVX2", "_C_stable_libtorch"])
def test_a_compiled_module_is_kernels(package, kind, module):
    assert torch_backend.has_kernels(platform(kind), package(f"{module}.abi3.so"))


def test_kernels_without_a_device_do_not_compute(package):
    assert not torch_backend.has_kernels(platform(KINDS.UNSPECIFIED), package("_C.abi3.so"))


@pytest.mark.parametrize("kind", [KINDS.OOT, KINDS.TPU, KINDS.XPU])
def test_other_platforms_bring_their_kernels(package, kind):
    assert torch_backend.has_kernels(platform(kind), package())


@pytest.fixture
def configure(monkeypatch, package):
    """Register on a platform and in a package, then ask for an engine's configuration."""
    import vllm
    import vllm.platforms

    monkeypatch.setattr(EngineArgs, "create_engine_config", lambda self: "a configuration")

    def ask(kind, *files):
        monkeypatch.setattr(vllm.platforms, "current_platform", platform(kind), raising=False)
        monkeypatch.setattr(vllm, "__path__", package(*files))
        torch_backend.refuse_without_kernels()
        return EngineArgs.create_engine_config(None)

    return ask


@pytest.mark.parametrize("kind", [KINDS.CPU, KINDS.UNSPECIFIED])
@pytest.mark.parametrize("value", ["0", "off"])
def test_the_refusal_says_what_to_do(configure, monkeypatch, kind, value):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", value)
    with pytest.raises(RuntimeError, match=f"VLLM_METAL_USE_MLX={value} {MESSAGE}") as refusal:
        configure(kind)
    assert f"make serve VLLM_METAL_USE_MLX={value}" in str(refusal.value)
    assert "unset VLLM_METAL_USE_MLX" in str(refusal.value)


def test_commands_without_an_engine_go_on(configure, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    with pytest.raises(RuntimeError, match=MESSAGE):
        configure(KINDS.CPU)
    torch_backend.refuse_without_kernels()  # raises nothing by itself


def test_mlx_is_not_disturbed(configure, monkeypatch):
    monkeypatch.delenv("VLLM_METAL_USE_MLX", raising=False)
    assert configure(KINDS.OOT) == "a configuration"
    assert configure(KINDS.CPU) == "a configuration"


def test_kernels_are_not_disturbed(configure, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    assert configure(KINDS.CUDA, "_C.abi3.so") == "a configuration"
