# SPDX-License-Identifier: Apache-2.0
"""A server of the real model for each mode of the KV cache, and what transformers says to its
prompts.
"""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from tests.e2e import prompts
from tests.e2e.reference import Reference
from tests.e2e.server import Server

HERE = Path(__file__).parent

SERVER_ARGUMENTS = (
    *("--dtype", "float32", "--max-model-len", "2048", "--kv-cache-memory-bytes", "1G"),
    *("--max-num-batched-tokens", "256"),  # long prompts come in chunks
    *("--max-logprobs", "-1", "--enable-prompt-tokens-details"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}'),
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)
    # One mode after the other, each ending with the tests that stop the servers of the others.
    items.sort(key=lambda item: (_mode_of(item) == "paged", item.path == HERE / "test_stop.py"))


def _mode_of(item) -> str | None:
    return item.callspec.params.get("kv_cache_mode") if hasattr(item, "callspec") else None


@pytest.fixture(scope="session", params=["mlx-managed", "paged"])
def kv_cache_mode(request) -> str:
    """Name the KV cache of `server` and `tiny_server`; tests of these run once with each."""
    return request.param


@pytest.fixture(scope="session")
def mode_variables(kv_cache_mode) -> dict[str, str]:
    """Return the environment that asks for the mode."""
    return {"VLLM_METAL_USE_PAGED_ATTENTION": "01"[kv_cache_mode == "paged"]}


@pytest.fixture(scope="session")
def default_model() -> Path:
    from vllm_metal.default_model import ensure_default_model

    return ensure_default_model()


@pytest.fixture(scope="session")
def server(default_model, mode_variables, tmp_path_factory):
    """`vllm serve` of the default model in float32."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with Server(default_model, log, *SERVER_ARGUMENTS, variables=mode_variables) as running:
        yield running


@pytest.fixture(scope="session")
def reference(default_model) -> Reference:
    return Reference(default_model)


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def messages_client(server):
    """Return a client of Anthropic's API."""
    from anthropic import Anthropic

    return Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=300)


@pytest.fixture(scope="session")
def chat(client, server):
    """Ask a short question, greedily unless `options` say otherwise."""

    def create(**options):
        return client.chat.completions.create(
            **{
                "model": server.name,
                "messages": prompts.QUESTION,
                "max_tokens": 24,
                "temperature": 0.0,
                **options,
            }
        )

    return create


@pytest.fixture(scope="session")
def complete(client, server):
    """Continue a prompt, greedily unless `options` say otherwise.

    Keywords that the client does not know go into the body, as vLLM reads them.
    """
    import inspect

    known = inspect.signature(client.completions.create).parameters

    def create(prompt, **options):
        body = {"return_token_ids": True} | {
            name: options.pop(name) for name in list(options) if name not in known
        }
        return client.completions.create(
            **{"model": server.name, "max_tokens": 16, "temperature": 0.0, **options},
            prompt=prompt,
            extra_body=body,
        )

    return create


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Make a tiny random model that has a token whose logits are NaN, and tokens of thought."""
    import torch
    from safetensors.torch import load_file, save_file

    from tests.plugin.tiny_model import write_tiny_llama

    directory = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.embed_tokens.weight"][prompts.NAN_TOKEN] = torch.nan
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    for token, text in prompts.THOUGHT_TOKENS.items():
        del tokenizer["model"]["vocab"][f"w{token}"]
        tokenizer["model"]["vocab"][text] = token
        tokenizer["added_tokens"].append({**_ADDED_TOKEN, "id": token, "content": text})
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }} {% endfor %}<think>"
    )
    return directory


_ADDED_TOKEN = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


@pytest.fixture(scope="session")
def tiny_server(tiny_model, mode_variables, tmp_path_factory):
    """Serve the tiny model, as one that thinks first."""
    log = tmp_path_factory.mktemp("tiny") / "server.log"
    arguments = ("--kv-cache-memory-bytes", "16M", "--dtype", "float32")
    arguments += ("--reasoning-parser", "deepseek_r1")
    with Server(tiny_model, log, *arguments, variables=mode_variables) as running:
        yield running
