# SPDX-License-Identifier: Apache-2.0
"""The core in a process that may take little more memory: it says so, and goes on with more."""

import subprocess
import sys
import textwrap

import pytest

from tests.plugin.tiny_model import write_tiny_llama

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs a limit of a process's memory"
)

# 64 MiB of weights, 16 KiB of keys and values a token.
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_hidden_layers": 4,
}

PRELUDE = """
import contextlib
import resource
import sys
from pathlib import Path

from vllm_metal import _core

GREEDY = _core.SamplingParams(temperature=0.0)
MODEL = Path(sys.argv[1])


@contextlib.contextmanager
def refused(more_mib, what):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (more_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        assert what in str(error), error
    else:
        raise AssertionError("there was enough memory")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def load():
    return _core.ModelRunner(str(MODEL), (MODEL / "config.json").read_text(), "float32")


def step(runner, name, length, blocks=()):
    request = {"new_requests": [(name, [7] * length, 0, GREEDY)], "scheduled": [(name, 0, length)]}
    return runner.step(**request, blocks=[(name, list(blocks), True)] if blocks else []).token_ids
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "model", **SHAPE)


@pytest.fixture
def run(model):
    """Run lines in a process of their own."""

    def run_lines(lines):
        script = PRELUDE + textwrap.dedent(lines)
        command = [sys.executable, "-c", script, str(model)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run_lines


def test_while_loading(run):
    run("""
        with refused(40, "[memory] cannot allocate"):
            load()
        runner = load()
        runner.initialize_kv_cache(1000, 16)
        assert step(runner, "a", 5)[0]
        runner.unload_weights()
        with refused(40, "[memory] cannot allocate"):
            runner.load_weights()
        runner.load_weights()
        assert step(runner, "b", 5)[0]
    """)


def test_in_the_cache_that_grows(run):
    """Requests that have their rows keep them."""
    run("""
        runner = load()
        runner.initialize_kv_cache(100_000, 16)
        expected = step(runner, "a", 50)
        after = [runner.step(scheduled=[("a", 50 + i, 1)]).token_ids for i in range(3)]
        runner.step(finished=["a"])
        assert step(runner, "a", 50) == expected
        with refused(8, "[memory] cannot allocate"):
            step(runner, "b", 4000)
        with contextlib.suppress(RuntimeError):
            runner.step(finished=["b"])
        runner.step(finished=["b"])
        found = [runner.step(scheduled=[("a", 50 + i, 1)]).token_ids for i in range(3)]
        assert found == after
    """)


def test_in_the_pool_of_blocks(run):
    run("""
        runner = load()
        with refused(100, "[paged_kv_cache] cannot allocate 3000 blocks, 750 MiB: [memory]"):
            runner.initialize_paged_kv_cache(3000, 16)
        runner.initialize_paged_kv_cache(3000, 16)
        expected = step(runner, "a", 50, range(1, 5))
        runner.step(finished=["a"])
        runner.discard_kv_cache()
        with refused(100, "[paged_kv_cache] cannot allocate 3000 blocks, 750 MiB: [memory]"):
            step(runner, "a", 50, range(1, 5))
        with contextlib.suppress(RuntimeError):
            runner.step(finished=["a"])
        runner.step(finished=["a"])
        assert step(runner, "a", 50, range(1, 5)) == expected
    """)


def test_in_the_pool_of_the_prefix_cache(run):
    """It is made at the first save, and whole or not at all."""
    run("""
        def save(name, place):
            return _core.PrefixCacheInput(saves_of_scheduled=[(name, 0, [place])])

        def prefill(name, computed=0, **prefix_cache):
            new = [(name, [7] * 50, 0, GREEDY)]
            scheduled = [(name, computed, 50 - computed)]
            return runner.step(new_requests=new, scheduled=scheduled, **prefix_cache).token_ids

        runner = load()
        runner.initialize_kv_cache(1000, 16, 3000)
        expected = step(runner, "a", 50)
        runner.step(finished=["a"])
        with refused(100, "[prefix_cache] cannot allocate 3000 blocks, 750 MiB: [memory]"):
            prefill("b", prefix_cache=save("b", 0))
        with contextlib.suppress(RuntimeError):
            runner.step(finished=["b"])
        runner.step(finished=["b"])
        assert runner.prefix_cache_bytes == 0
        assert prefill("c", prefix_cache=save("c", 5)) == expected
        runner.step(finished=["c"])
        load_of = _core.PrefixCacheInput(loads=[("d", 0, [5])])
        assert prefill("d", computed=16, prefix_cache=load_of) == expected
    """)


def test_in_a_step(run):
    run("""
        runner = load()
        runner.initialize_kv_cache(1000, 16)
        expected = step(runner, "a", 50)
        runner.step(finished=["a"])
        with refused(2, "[memory] cannot allocate"):
            step(runner, "b", 500)
        with contextlib.suppress(RuntimeError):
            runner.step(finished=["b"])
        runner.step(finished=["b"])
        assert step(runner, "a", 50) == expected
    """)
