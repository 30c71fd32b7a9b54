# SPDX-License-Identifier: Apache-2.0
import json
from functools import partial

import pytest

from tests.plugin.fake_core import PendingOutput, StepOutput


@pytest.fixture
def worker(engine_config):
    from vllm_metal.worker import MetalWorker

    config = engine_config(kv_cache_memory_bytes=1 << 20)
    return MetalWorker(config, 0, 0, "file:///tmp/unused", is_driver_worker=True)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_model", ()),
        ("add_lora", (object(),)),
        ("remove_lora", (1,)),
        ("pin_lora", (1,)),
    ],
)
def test_what_is_not_supported_says_so(worker, method, arguments):
    with pytest.raises(NotImplementedError, match="is not supported yet"):
        getattr(worker, method)(*arguments)


def test_dummy_weights_are_refused(worker):
    with pytest.raises(NotImplementedError, match="dummy weights"):
        worker.load_model(load_dummy_weights=True)


def test_before_loading_and_after_shutdown(worker):
    with pytest.raises(RuntimeError, match="not loaded"):
        worker.check_health()
    worker.init_device()
    worker.load_model()
    worker.check_health()
    worker.shutdown()
    with pytest.raises(RuntimeError, match="not loaded"):
        worker.check_health()


def test_memory_and_specs(worker):
    worker.init_device()
    worker.load_model()
    assert worker.determine_available_memory() == 1 << 20
    specs = worker.get_kv_cache_spec()
    assert list(specs) == ["model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn"]
    # keys and values × 16 tokens × 2 heads × 16 dimensions × 2 bytes
    assert {spec.page_size_bytes for spec in specs.values()} == {2 * 16 * 2 * 16 * 2}


@pytest.mark.parametrize("is_on", [False, True])
def test_the_prefix_cache_is_told_its_size(fake_core, engine_config, is_on):
    from vllm_metal.prefix_cache import PrefixCacheSize
    from vllm_metal.worker import MetalWorker

    config = engine_config(kv_cache_memory_bytes=1 << 20, enable_prefix_caching=is_on)
    worker = MetalWorker(config, 0, 0, "file:///tmp/unused", is_driver_worker=True)
    worker.init_device()
    worker.load_model()
    worker.determine_available_memory()
    size = {(0, 0): PrefixCacheSize(fake_core.NUM_PREFIX_BLOCKS)} if is_on else None
    assert worker.get_kv_connector_handshake_metadata() == size


def test_a_trace_of_steps(engine_config, tmp_path):
    from vllm_metal.model_runner import PendingStep
    from vllm_metal.step_trace import LaunchedStep
    from vllm_metal.torch_draw import TorchDraw
    from vllm_metal.worker import MetalWorker

    config = engine_config(
        profiler_config={
            "profiler": "torch",
            "torch_profiler_dir": str(tmp_path / "traces"),
            "ignore_frontend": True,
            "delay_iterations": 1,
        }
    )
    worker = MetalWorker(config, 0, 0, "file:///tmp/unused", is_driver_worker=True)
    worker.init_device()
    worker.load_model()
    worker.profile(is_start=True, profile_prefix="mine", max_iterations=2)
    with pytest.raises(RuntimeError, match="profiler is running"):
        worker.profile(is_start=True, profile_prefix="again")
    trace = worker.model_runner._trace
    for number in range(4):
        launched = LaunchedStep(1.0 + number, 1.001 + number, number, 10 * number)
        output = StepOutput([], [], forward_ms=1500.0, sampling_ms=0.5)
        PendingStep(
            [], PendingOutput(output), TorchDraw(), partial(trace.add, launched)
        ).get_output()
    worker.profile(is_start=False)
    worker.profile(is_start=False)  # does nothing

    (file,) = (tmp_path / "traces").iterdir()
    assert file.name.startswith("mine-")
    events = [e for e in json.loads(file.read_text())["traceEvents"] if e["ph"] == "X"]
    assert [e["name"] for e in events] == ["launch", "forward", "sampling"] * 2
    assert [e["args"] for e in events[::3]] == [{"requests": n, "tokens": 10 * n} for n in (1, 2)]
    for launch, forward, sampling in zip(*(events[i::3] for i in range(3)), strict=True):
        assert launch["dur"] == pytest.approx(1000, rel=1e-3)
        assert forward["dur"] == pytest.approx(1.5e6)
        assert sampling["ts"] == pytest.approx(forward["ts"] + forward["dur"])
    # The device was busy with the first step until 2.5 s, half a second after the launch.
    assert events[1]["ts"] - events[0]["ts"] == pytest.approx(500_500, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        ("sleep", (1,), ["kv_cache", "weights"]),
        ("sleep", (2,), ["kv_cache", "weights"]),
        ("discard", (("kv_cache",),), ["kv_cache"]),
        ("wake_up", (None,), ["load"]),
        ("wake_up", (["weights"],), ["load"]),
        ("wake_up", (["kv_cache"],), []),
    ],
)
def test_what_sleeping_and_waking_do(worker, fake_core, call, arguments, expected):
    worker.init_device()
    worker.load_model()
    getattr(worker, call)(*arguments)
    assert fake_core.ModelRunner.instances[-1].memory_calls == expected


def test_what_memory_is_planned_with(fake_core, engine_config):
    from vllm_metal.worker import MetalWorker

    config = engine_config(max_num_batched_tokens=512, max_num_seqs=8, max_model_len=48)
    worker = MetalWorker(config, 0, 0, "file:///tmp/unused", is_driver_worker=True)
    worker.init_device()
    worker.load_model()
    fake_core.memory_limits.clear()
    kv_cache = worker.determine_available_memory()
    (plan,) = fake_core.memory_limits
    assert kv_cache == plan.kv_cache
    assert fake_core.ModelRunner.instances[-1].measured == (256, 5)  # of 8 * 48, 8
    memory = fake_core.MEMORY
    assert plan.arguments == {
        "total": memory,
        "available": memory,
        "working_set": memory,
        "model": 1 << 20,
        "activations": 1500,
        "block_bytes": 2 * 2 * 16 * 2 * 16 * 2,
        "block_size": 16,
        "max_model_len": 48,
        "shortens": False,
        "num_blocks": None,
        "kv_cache_bytes": None,
        "utilization": None,
        "prefix_cache": False,
    }
    worker.shutdown()
    assert fake_core.memory_limits == [plan, None]


@pytest.mark.parametrize(
    ("backend", "largest", "expected"),
    [
        ("metal", (2048, 256), ((2048, 256), 1000)),
        ("cpu", (2048, 256), ((256, 32), 8000)),
        ("cpu", (2048, 1), ((48, 1), 1000)),  # no longer than max_model_len
        ("cpu", (128, 64), ((128, 64), 1000)),
    ],
)
def test_the_step_that_is_measured(fake_core, engine_config, backend, largest, expected):
    from vllm_metal.model_runner import MetalModelRunner

    num_tokens, num_seqs = largest
    runner = MetalModelRunner(
        engine_config(max_num_batched_tokens=num_tokens, max_num_seqs=num_seqs, max_model_len=48)
    )
    measured, activations = expected
    assert runner.measure_activations(backend) == activations
    assert fake_core.ModelRunner.instances[-1].measured == measured


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_gpu_blocks_override": 100}, {"num_blocks": 100}),
        ({"kv_cache_memory_bytes": 1 << 20}, {"kv_cache_bytes": 1 << 20}),
        ({"gpu_memory_utilization": 0.5}, {"utilization": 0.5}),
        ({"max_model_len": -1}, {"shortens": True}),
    ],
)
def test_vllms_options_reach_the_plan(fake_core, engine_config, options, expected):
    from vllm_metal.memory import plan_memory

    config = engine_config(**options)
    sizes = {"weight_bytes": 1, "activation_bytes": 2, "block_bytes": 3}
    plan = plan_memory(fake_core.device_info(), config, **sizes)
    given = {"num_blocks", "kv_cache_bytes", "utilization", "shortens"}
    found = {key: plan.arguments[key] for key in given if plan.arguments[key]}
    assert found == expected


def test_lowered_length_is_noted(worker):
    worker.update_max_model_len(77)
    assert worker.model_config.max_model_len == 77


@pytest.mark.parametrize("arguments", [("LBNHC",), ("LBNHC", 1)])
def test_layout_in_the_form_of_both_releases(worker, arguments, monkeypatch):
    from vllm.v1.worker.worker_base import WorkerBase

    seen = []
    monkeypatch.setattr(WorkerBase, "set_kv_cache_layout", lambda _, *args: seen.append(args))
    worker.set_kv_cache_layout(*arguments)
    assert seen == [arguments]
