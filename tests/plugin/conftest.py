# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the plugin's tests: a tiny model on disk, a core made of Python, an engine."""

import contextlib
import importlib
import os
import sys
from pathlib import Path

import pytest

# Read by vLLM when it is imported, which the tests do after this file.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from tests.plugin import fake_core as fake_core_module
from tests.plugin.hub_stand_in import serve_hub
from tests.plugin.tiny_model import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@contextlib.contextmanager
def one_engine_at_a_time(model, **common):
    """Give a function that makes engines of `model` and shuts the one before down."""
    from vllm import LLM

    alive = []

    def shut_down():
        while alive:
            alive.pop().llm_engine.engine_core.shutdown()

    def make(**arguments):
        shut_down()
        alive.append(LLM(str(model), **common, **arguments))
        return alive[-1]

    yield make
    shut_down()


@pytest.fixture(scope="module")
def fake_core():
    """Put the fake core where the plugin looks for the real one."""
    import vllm_metal

    with contextlib.suppress(ImportError):  # so that undoing the patch leaves the real one
        importlib.import_module("vllm_metal.worker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm_metal._core", fake_core_module)
        patch.setattr(vllm_metal, "_core", fake_core_module, raising=False)
        from vllm_metal import model_runner, worker

        for module in (model_runner, worker):
            patch.setattr(module, "_core", fake_core_module)
        patch.setattr(fake_core_module.ModelRunner, "instances", [])
        yield fake_core_module


@pytest.fixture
def engine_config(fake_core, tiny_llama):
    """Build the configuration that `vllm serve` would build from engine arguments."""
    from vllm.engine.arg_utils import EngineArgs

    def build(**arguments):
        return EngineArgs(**{"model": str(tiny_llama), **arguments}).create_engine_config()

    return build


@pytest.fixture
def hub(connect):
    """Serve a stand-in of the hub that the test's `connect` points its clients to."""
    with serve_hub() as running:
        connect(running.url)
        yield running


@pytest.fixture
def offline(monkeypatch):
    """Return a function that sets HF_HUB_OFFLINE from here on."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
