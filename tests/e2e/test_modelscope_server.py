# SPDX-License-Identifier: Apache-2.0
"""VLLM_USE_MODELSCOPE=1: `vllm serve owner/name` serves a model of ModelScope."""

import pytest

from tests.e2e.server import Server
from tests.plugin.hub_stand_in import serve_hub

NAME = "org/tiny"


@pytest.fixture(scope="module")
def hub(tiny_model):
    with serve_hub() as running:
        running.add(NAME, tiny_model)
        yield running


@pytest.fixture(scope="module")
def modelscope(hub, tmp_path_factory):
    """Return the variables, and the folder in which all files must end."""
    folder = tmp_path_factory.mktemp("modelscope")
    variables = {
        "HF_HUB_OFFLINE": "0",
        "VLLM_USE_MODELSCOPE": "True",
        "VLLM_METAL_MODELSCOPE_CACHE": str(folder / "cache"),
        "MODELSCOPE_ENDPOINT": hub.url,
        "MODELSCOPE_CACHE": str(folder / "other"),
        "MODELSCOPE_HOME": str(folder / "home"),
    }
    return variables, folder


def test_a_model_is_downloaded_and_answers(modelscope, hub, tmp_path):
    variables, folder = modelscope
    arguments = ("--kv-cache-memory-bytes", "16M", "--dtype", "float32")
    log = tmp_path / "server.log"
    with Server(NAME, log, *arguments, name=NAME, variables=variables) as server:
        client = server.client()
        assert [model.id for model in client.models.list()] == [NAME]
        answer = client.completions.create(
            model=NAME,
            prompt="w5 w6 w7",
            max_tokens=8,
            temperature=0,  # the tiny model has a token with which it cannot go on
            extra_body={"ignore_eos": True},
        )
        assert answer.usage.completion_tokens == 8
        assert answer.choices[0].text.strip().startswith(("w", "<"))
    assert "model.safetensors" in hub.fetched
    assert list((folder / "cache").rglob("model.safetensors"))
    assert not list((folder / "other").rglob("*.json"))


def test_a_folder_with_a_model_is_the_model_itself(modelscope, hub, tiny_model, tmp_path):
    variables = modelscope[0] | {"VLLM_METAL_MODELSCOPE_CACHE": str(tiny_model)}
    asked_before = len(hub.fetched)
    arguments = ("--kv-cache-memory-bytes", "16M", "--dtype", "float32")
    log = tmp_path / "server.log"
    with Server("org/other", log, *arguments, name="other", variables=variables) as server:
        answer = server.client().completions.create(
            model="other", prompt="w5 w6", max_tokens=4, temperature=0
        )
        assert answer.usage.completion_tokens > 0
    assert len(hub.fetched) == asked_before
    assert f"org/other is taken from VLLM_METAL_MODELSCOPE_CACHE={tiny_model}" in log.read_text()


def test_a_name_that_is_not_there_is_told(modelscope, tmp_path):
    variables, _ = modelscope
    server = Server("org/none", tmp_path / "server.log", variables=variables)
    server.refusal()
    assert "'org/none' is neither a folder on this machine nor a model" in server.tail(3)
