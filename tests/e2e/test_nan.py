# SPDX-License-Identifier: Apache-2.0
"""A model with a token that makes all logits NaN: its requests fail, the server goes on."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.e2e.server import Server
from tests.plugin.tiny_model import write_tiny_llama

NAN_TOKEN = 95


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch
    from safetensors.torch import load_file, save_file

    directory = write_tiny_llama(tmp_path_factory.mktemp("models") / "nan-llama")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][NAN_TOKEN] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    log = tmp_path_factory.mktemp("nan") / "server.log"
    with Server(model, log, "--kv-cache-memory-bytes", "16M", "--dtype", "float32") as running:
        yield running


@pytest.fixture
def say(server):
    def create(prompt, **options):
        return server.client().completions.create(
            **{
                "model": server.name,
                "prompt": prompt,
                "max_tokens": 12,
                "temperature": 0.0,
                "extra_body": {"ignore_eos": True, "return_token_ids": True},
                **options,
            }
        )

    return create


def test_the_request_fails(say):
    with pytest.raises(openai.InternalServerError):
        say([5, 6, NAN_TOKEN])


def test_a_stream_ends_with_an_error(say):
    with pytest.raises(openai.APIError, match="Internal server error"):
        list(say([5, 6, NAN_TOKEN], stream=True))


def test_others_in_the_batch_and_after_it_are_not_touched(say, server):
    prompts = [[7, 8, 9], [10] * 30, [11, 12]]
    before = [say(prompt).choices[0].token_ids for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        bad = [pool.submit(say, [5] * 40 + [NAN_TOKEN]) for _ in range(3)]
        good = [pool.submit(say, prompt) for prompt in prompts]
        for future in bad:
            with pytest.raises(openai.InternalServerError):
                future.result()
        assert [future.result().choices[0].token_ids for future in good] == before
    assert [say(prompt).choices[0].token_ids for prompt in prompts] == before
    assert "hold NaN" in server.log.read_text()
