# SPDX-License-Identifier: Apache-2.0
import json
import logging

import pytest

from tests.plugin.tiny_model import LLAMA3_ROPE, copy_with_config


@pytest.fixture
def config_json(engine_config):
    """The config that the core gets for engine arguments."""
    from vllm_metal import loading

    def build(**arguments):
        return json.loads(loading.config_json(engine_config(**arguments).model_config))

    return build


def test_what_the_core_reads_is_there(config_json):
    config = config_json()
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 96,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": LLAMA3_ROPE,
    }
    assert {key: config[key] for key in expected} == expected


def test_rope_settings_of_the_older_layout(config_json, tiny_llama, tmp_path):
    config = json.loads((tiny_llama / "config.json").read_text())
    del config["rope_parameters"]
    model = copy_with_config(tiny_llama, tmp_path / "model")
    (model / "config.json").write_text(
        json.dumps(config | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}})
    )
    rope = config_json(model=str(model))["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("linear", 5e5, 2.0)


def test_overrides_are_effective(config_json):
    rope = {"rope_type": "linear", "rope_theta": 123.0, "factor": 3.0}
    config = config_json(hf_overrides={"rms_norm_eps": 0.25, "rope_parameters": rope})
    assert config["rms_norm_eps"] == 0.25
    assert config["rope_parameters"] == rope


@pytest.mark.parametrize("layout", ["rope_parameters", "rope_scaling"])
def test_overrides_must_not_lose_rope_theta(engine_config, layout):
    """vLLM replaces the whole of the settings, and 10000 would be used in its place."""
    rope = {"rope_type": "linear", "factor": 3.0}
    with pytest.raises(ValueError, match=r"leaves out rope_theta, which is [0-9.]+ in .*config"):
        engine_config(hf_overrides={layout: rope})
    engine_config(hf_overrides={layout: rope | {"rope_theta": 500.0}})
    engine_config(hf_overrides={"rms_norm_eps": 0.25})


@pytest.mark.parametrize("keys", [("quantization",), ("quantization_config",)])
def test_quantisation_survives(config_json, tiny_llama, tmp_path, keys):
    quantization = {
        "group_size": 32,
        "bits": 4,
        "model.layers.0.mlp.down_proj": {"group_size": 32, "bits": 8},
        "lm_head": False,
    }
    model = copy_with_config(tiny_llama, tmp_path / "model", **dict.fromkeys(keys, quantization))
    config = config_json(model=str(model))
    for key in keys:
        assert config[key] == quantization


def test_inert_sliding_window_is_dropped(config_json):
    config = config_json(hf_overrides={"sliding_window": 64}, max_model_len=64)
    assert config["sliding_window"] is None


def test_untied_head_of_the_checkpoint(config_json, tiny_llama, tmp_path):
    """An lm_head in the files counts more than what the config says: vLLM looks."""
    model = copy_with_config(tiny_llama, tmp_path / "model", tie_word_embeddings=True)
    assert config_json(model=str(model))["tie_word_embeddings"] is False


def test_a_local_folder_is_taken_as_it_is(engine_config, tiny_llama):
    from vllm_metal import loading

    config = engine_config()
    directory = loading.resolve_model_directory(config.model_config, config.load_config)
    assert directory == str(tiny_llama)


def test_a_model_that_cannot_be_fetched_is_named(engine_config):
    from vllm_metal import loading

    config = engine_config()
    config.model_config.model = "no-such-organisation/no-such-model"
    with pytest.raises(
        RuntimeError, match=r"^'no-such-organisation/no-such-model' is not complete"
    ):
        loading.resolve_model_directory(config.model_config, config.load_config)


def test_progress_is_logged_at_intervals(fake_core, monkeypatch):
    from vllm_metal import loading

    now, lines = [0.0], []
    monkeypatch.setattr(loading.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loading.logger, "info", lambda *args: lines.append(args[0] % args[1:]))
    progress = loading.LoadProgress(interval_seconds=5.0)
    for second in range(12):
        now[0] = float(second)
        progress(second << 30, 12 << 30)
    assert lines == ["Loading weights: 41% of 12.00 GiB", "Loading weights: 83% of 12.00 GiB"]


def test_log_of_the_core_is_forwarded(fake_core, monkeypatch):
    from vllm_metal import log

    sinks, records = [], []
    monkeypatch.setattr(fake_core, "set_log_sink", sinks.append)
    logger = log.get_logger("vllm_metal.core")
    monkeypatch.setattr(logger, "log", lambda level, _, *args: records.append((level, *args)))
    log.forward_core_log()
    monkeypatch.setenv("VLLM_METAL_DEBUG", "1")
    log.forward_core_log()
    log.silence_core_log()
    for sink in sinks[:2]:
        for level in range(3):
            sink(level, "100% done")
    assert [level for level, _ in records] == [
        logging.DEBUG,
        logging.INFO,
        logging.WARNING,
        logging.INFO,
        logging.INFO,
        logging.WARNING,
    ]
    assert sinks[2] is None


def test_code_of_a_model_is_never_run(engine_config, tiny_llama, tmp_path):
    marker = tmp_path / "was_run"
    model = copy_with_config(
        tiny_llama,
        tmp_path / "model",
        model_type="its",
        auto_map={"AutoConfig": "its.ItsConfig"},
    )
    (model / "its.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig\n"
        f"Path({str(marker)!r}).touch()\n"
        "class ItsConfig(LlamaConfig):\n"
        "    model_type = 'its'\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code"):  # vLLM's, of an unknown type
        engine_config(model=str(model), trust_remote_code=True)
    assert not marker.exists()


def test_trust_in_code_is_ignored_where_there_is_none(engine_config):
    assert not engine_config(trust_remote_code=True).model_config.trust_remote_code
