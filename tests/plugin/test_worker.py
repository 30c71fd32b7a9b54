# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture
def worker(engine_config):
    from vllm_metal.worker import MetalWorker

    config = engine_config(kv_cache_memory_bytes=1 << 20)
    return MetalWorker(config, 0, 0, "file:///tmp/unused", is_driver_worker=True)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_model", ()),
        ("profile", (True, "prefix")),
        ("sleep", (1,)),
        ("wake_up", (None,)),
        ("discard", (("weights",),)),
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
