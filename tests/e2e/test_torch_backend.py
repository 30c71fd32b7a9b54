# SPDX-License-Identifier: Apache-2.0
"""VLLM_METAL_USE_MLX=0: vLLM's PyTorch back end says the same greedy tokens on the same weights."""

import sys
from pathlib import Path

import pytest

from tests.e2e.prompts import NUM_TOKENS, PROMPTS
from tests.e2e.server import Server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import peer_env
import preflight
import serve

# The first test installs an environment, dequantises the model and waits for a server.
pytestmark = pytest.mark.timeout(1800)

CONTEXT = 2048


class TorchServer(Server):
    """Started by the command of `make serve`, in float32: its bfloat16 decides fewer steps."""

    def __init__(self, python: Path, model: str, log: Path) -> None:
        super().__init__(model, log)
        self.command = [
            *serve.torch_command(python, model),
            *serve.address(self.name, self.port),
            *("--dtype", "float32", "--max-model-len", str(CONTEXT)),
            *("--kv-cache-memory-bytes", "1G"),
        ]


@pytest.fixture(scope="module")
def torch_python() -> Path:
    """Install what `make serve` would: seconds to minutes, depending on uv's cache."""
    if preflight.is_mac():
        pytest.skip("no package has vLLM's CPU kernels for macOS")
    return peer_env.ensure("torch-backend")


@pytest.fixture(scope="module")
def plain_model(default_model) -> str:
    return serve.dequantised(str(default_model), serve.DEFAULT_NAME)


@pytest.fixture(scope="module")
def torch_server(torch_python, plain_model, tmp_path_factory):
    log = tmp_path_factory.mktemp("torch") / "server.log"
    with TorchServer(torch_python, plain_model, log) as running:
        yield running


@pytest.fixture(scope="module")
def our_engine(plain_model):
    from vllm import LLM

    engine = LLM(plain_model, dtype="float32", max_model_len=CONTEXT, kv_cache_memory_bytes=1 << 30)
    yield engine
    engine.llm_engine.engine_core.shutdown()


def our_tokens(engine, prompt: list[int]) -> list[int]:
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    (output,) = engine.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def torch_tokens(server, prompt: list[int]) -> list[int]:
    response = server.client().completions.create(
        model=server.name,
        prompt=prompt,
        max_tokens=NUM_TOKENS,
        temperature=0.0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    return response.choices[0].token_ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_greedy_tokens_are_ours(torch_server, our_engine, reference, prompt):
    tokens = prompt.token_ids(reference)
    expected = our_tokens(our_engine, tokens)
    assert len(expected) == NUM_TOKENS
    assert torch_tokens(torch_server, tokens) == expected


def test_it_is_not_our_plugin_that_serves(torch_server):
    text = torch_server.text()
    assert "vllm_metal" not in text
    assert "Platform plugin metal is activated" not in text


def test_without_kernels_vllm_says_what_to_do(default_model, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_USE_MLX", "0")
    server = Server(default_model, tmp_path / "server.log")
    server.start()
    try:
        code = server.wait_for_exit()
    finally:
        server.stop()
    last_lines = server.tail(5)
    assert code != 0
    assert "VLLM_METAL_USE_MLX=0 leaves the computing to vLLM's PyTorch back end" in last_lines
    assert "make serve VLLM_METAL_USE_MLX=0" in last_lines
