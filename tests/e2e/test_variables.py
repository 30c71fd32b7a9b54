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
    "VLLM_METAL_PREFIX_CACHE": "1",
    "VLLM_METAL_PREFIX_CACHE_FRACTION": "0.01",
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
        ask(16)  # computed before, but for its last block
    return path.read_text()


def mebibytes(log, row):
    number, unit = re.search(rf"  {row} +([0-9.]+) (MiB|GiB)", log).groups()
    return float(number) * {"MiB": 1, "GiB": 1024}[unit]


def test_the_device(log):
    assert re.search(r"Device .* \(cpu\), memory", log)
    assert "No GPU that MLX can use" not in log  # since the CPU was asked for


def test_the_fraction_of_memory(log, kv_cache_mode):
    assert "Memory plan (VLLM_METAL_MEMORY_FRACTION=0.05)" in log
    total, whole = mebibytes(log, "total"), mebibytes(log, "device")
    assert total == pytest.approx(0.05 * whole, rel=0.02)  # printed with two decimals
    rows = ["model", "KV cache", "activations", "margin"]
    rows += ["prefix cache"] if kv_cache_mode == "mlx-managed" else []
    assert sum(mebibytes(log, row) for row in rows) == pytest.approx(total, rel=0.01)


def test_the_prefix_cache(log, kv_cache_mode):
    """The device's working set is all of its memory on the CPU. Paged, it is vLLM's own."""
    assert "step: 1 requests, 32 tokens, 1 sampled" in log  # of 1600
    if kv_cache_mode == "paged":
        assert "prefix cache up to" not in log
        return
    size, whole = mebibytes(log, "prefix cache"), mebibytes(log, "device")
    assert size == pytest.approx(0.01 * whole, rel=0.02)
    assert re.search(r"; prefix cache up to [0-9.]+ [MG]iB, [0-9,]+ tokens\.", log)


def test_the_block_size(log):
    blocks, tokens = map(int, re.search(r"KV cache .* (\d+) blocks, (\d+) tokens", log).groups())
    assert tokens == 32 * blocks


def test_a_line_a_step(log):
    steps = re.findall(r"step: (\d+) requests, (\d+) tokens, (\d+) sampled; idle", log)
    assert len(steps) > 8
    assert max(int(requests) for requests, *_ in steps) > 1
    assert max(int(tokens) for _, tokens, _ in steps) > 1000


def test_what_does_not_fit_is_refused_with_all_figures(
    default_model, kv_cache_mode, mode_variables, tmp_path
):
    arguments = ("--kv-cache-memory-bytes", "100T")
    log = tmp_path / "server.log"
    text = Server(default_model, log, *arguments, variables=mode_variables).refusal()
    known = "Paged attention: requested memory exceeds what is available. "
    assert (f"[memory] {known}--kv-cache" in text) == (kv_cache_mode == "paged")
    figures = r"model 9\d\.\d MiB, KV cache 102400\.00 GiB .*, total 104448\.\d\d GiB; only"
    assert re.search(rf"requires more memory than there is: {figures}", text)
    assert "--max-num-batched-tokens" in text


def test_a_prefix_cache_of_less_than_a_block_is_refused(default_model, tmp_path):
    variables = {"VLLM_METAL_PREFIX_CACHE": "1", "VLLM_METAL_PREFIX_CACHE_FRACTION": "1e-9"}
    text = Server(default_model, tmp_path / "server.log", variables=variables).refusal()
    assert re.search(r"VLLM_METAL_PREFIX_CACHE_FRACTION=1e-09 of .* at least one block of", text)
    assert "Application startup complete" not in text
