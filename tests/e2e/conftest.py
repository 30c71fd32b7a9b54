# SPDX-License-Identifier: Apache-2.0
"""One server of the real model for all tests here, and what transformers says to its prompts."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.update(VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")

from tests.e2e.reference import Reference
from tests.e2e.server import Server

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def default_model() -> Path:
    from vllm_metal.default_model import ensure_default_model

    return ensure_default_model()


@pytest.fixture(scope="session")
def server(default_model, tmp_path_factory):
    """`vllm serve` of the default model in float32."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    arguments = ("--dtype", "float32", "--max-model-len", "2048")
    with Server(default_model, log, *arguments, "--kv-cache-memory-bytes", "1G") as running:
        yield running


@pytest.fixture(scope="session")
def reference(default_model) -> Reference:
    return Reference(default_model)
