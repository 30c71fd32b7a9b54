# SPDX-License-Identifier: Apache-2.0
"""Environment variables show their effect in a running server."""

import concurrent.futures
import re

import pytest

from tests.e2e.server import Server

pytestmark = pytest.mark.slow

VARIABLES = {
    "VLLM_MLX_DEVICE": "cpu",
    "VLLM_METAL_MEMORY_FRACTION": "0.05",
    "VLLM_METAL_BLOCK_SIZE": "32",
    "VLLM_METAL_DEBUG": "1",
}


@pytest.fixture(scope="module")
def log(default_model, mode_variables, tmp_path_factory):
    """Serve with all of them, in either mode, some load, and give what was said."""
    path = tmp_path_factory.mktemp("variables") / "server.log"
    with Server(default_model, path, variables=VARIABLES | mode_variables) as server:
        client = server.client()

        def ask(number):
            prompt = [1000 + (37 * number + i) % 40_000 for i in range(100 * number)]
            answer = client.completions.create(
                model=server.name, prompt=prompt, max_tokens=8, extra_body={"ignore_eos": True}
            )
            return answer.usage.completion_tokens

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(1, 17))) == [8] * 16
    return path.read_text()


def mebibytes(log, row):
    number, unit = re.search(rf"  {row} +([0-9.]+) (MiB|GiB)", log).groups()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_the_device(log):
    assert re.search(r"Device .* \(cpu\), memory", log)
    assert "No GPU that MLX can use" not in log  # since the CPU was asked for


def test_the_fraction_of_memory(log):
    assert "Memory plan (VLLM_METAL_MEMORY_FRACTION=0.05)" in log
    total, whole = mebibytes(log, "total"), mebibytes(log, "device")
    assert total == pytest.approx(0.05 * whole, rel=0.02)  # printed with two decimals
    parts = [mebibytes(log, row) for row in ("model", "KV cache", "activations", "margin")]
    assert sum(parts) == pytest.approx(total, rel=0.01)


def test_the_block_size(log):
    blocks, tokens = map(int, re.search(r"KV cache .* (\d+) blocks, (\d+) tokens", log).groups())
    assert tokens == 32 * blocks


def test_a_line_a_step(log):
    steps = re.findall(r"step: (\d+) requests, (\d+) tokens, (\d+) sampled; idle", log)
    assert len(steps) > 8
    assert max(int(requests) for requests, *_ in steps) > 1
    assert max(int(tokens) for _, tokens, _ in steps) > 1000


def test_what_does_not_fit_is_refused_with_all_figures(default_model, tmp_path):
    arguments = ("--kv-cache-memory-bytes", "100T")
    text = Server(default_model, tmp_path / "server.log", *arguments).refusal()
    figures = r"model 9\d\.\d MiB, KV cache 102400\.00 GiB .*, total 104448\.\d\d GiB; only"
    assert re.search(rf"requires more memory than there is: {figures}", text)
    assert "--max-num-batched-tokens" in text


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("VLLM_METAL_PREFIX_CACHE", "1", "unset or 0"),
        ("VLLM_METAL_PREFIX_CACHE_FRACTION", "0.1", "unset"),
    ],
)
def test_what_this_release_lacks_is_refused(default_model, tmp_path, name, value, allowed):
    log = tmp_path / "server.log"
    text = Server(default_model, log, variables={name: value}).refusal()
    assert re.search(rf"{name} must be {allowed} .* but is '{re.escape(value)}'", text)
    assert "Application startup complete" not in text
