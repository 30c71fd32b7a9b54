# SPDX-License-Identifier: Apache-2.0
"""VLLM_USE_MODELSCOPE and VLLM_METAL_MODELSCOPE_CACHE, against a ModelScope on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin.hub_stand_in import folder_of, message_of


@pytest.fixture
def connect(monkeypatch, tmp_path, fake_core):
    """Return a function that points modelscope at a URL; nothing is cached yet."""
    import vllm.envs
    from huggingface_hub import constants
    from modelscope_hub import _download, _legacy_api, config

    def point(url):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        config.set_default_config(None)  # read again

    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    # vLLM keeps what it read once an engine ran in this process.
    monkeypatch.setitem(vllm.envs.__dict__, "VLLM_USE_MODELSCOPE", True)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLLM_METAL_MODELSCOPE_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_download, "DOWNLOAD_RETRY_TIMES", 0)
    monkeypatch.setattr(_legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
    yield point
    config.set_default_config(None)


def test_weights_and_all_that_a_tokenizer_needs_but_no_code(hub, tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    others = ["modeling.py", "pytorch_model.bin", "consolidated.00.safetensors", "model.gguf"]
    for name in [*others, "chat_template.jinja", "merges.txt", "tokenizer.model"]:
        (source / name).write_text("content")
    hub.add("org/tiny", source)
    folder = folder_of("org/tiny")
    wanted = {path.name for path in source.iterdir()} - set(others)
    assert {path.name for path in folder.iterdir()} == wanted == set(hub.fetched)
    weights = (source / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights
    hub.fetched.clear()
    assert folder_of("org/tiny") == folder
    assert hub.fetched == []


def test_pickled_weights_where_there_is_nothing_else(hub, tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    (source / "model.safetensors").unlink()
    names = {"pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"}
    for name in [*names, "training_args.bin"]:
        (source / name).write_text("{}")
    hub.add("org/tiny", source)
    fetched = {path.name for path in folder_of("org/tiny").iterdir()}
    assert names <= fetched
    assert "training_args.bin" not in fetched


def test_a_revision(hub, tiny_llama, tmp_path):
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"rms_norm_eps": 0.125}
    (other / "config.json").write_text(json.dumps(config))
    hub.add("org/tiny", tiny_llama).revisions["v2"] = other
    for revision in ("v2", "master", None):
        folder = folder_of("org/tiny", revision=revision)
        epsilon = json.loads((folder / "config.json").read_text())["rms_norm_eps"]
        assert (epsilon == 0.125) == (revision == "v2")


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "OtherForCausalLM"])
def test_weights_that_no_one_can_load_are_not_fetched(hub, tiny_llama, tmp_path, architecture):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((source / "config.json").read_text()) | {"architectures": [architecture]}
    (source / "config.json").write_text(json.dumps(config))
    hub.add("org/tiny", source)
    folder = folder_of("org/tiny", weights=None)
    assert (folder / "tokenizer.json").is_file()
    has_weights = (folder / "model.safetensors").is_file()
    assert has_weights == (architecture == "LlamaForCausalLM")


# VLLM_METAL_MODELSCOPE_CACHE


def test_a_cache_directory(hub, tiny_llama, tmp_path, monkeypatch):
    hub.add("org/tiny", tiny_llama)
    monkeypatch.setenv("VLLM_METAL_MODELSCOPE_CACHE", str(tmp_path / "mine"))
    folder = folder_of("org/tiny")
    assert folder.is_relative_to(tmp_path / "mine")
    assert (folder / "model.safetensors").is_file()
    assert not (tmp_path / "cache" / "models").exists()


def test_a_cache_directory_at_home(hub, tiny_llama, tmp_path, monkeypatch):
    hub.add("org/tiny", tiny_llama)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("VLLM_METAL_MODELSCOPE_CACHE", "~/models")
    assert folder_of("org/tiny").is_relative_to(tmp_path / "me" / "models")


def test_the_option_counts_more(hub, tiny_llama, tmp_path, monkeypatch):
    hub.add("org/tiny", tiny_llama)
    monkeypatch.setenv("VLLM_METAL_MODELSCOPE_CACHE", str(tmp_path / "mine"))
    folder = folder_of("org/tiny", download_dir=str(tmp_path / "option"))
    assert folder.is_relative_to(tmp_path / "option")
    assert not (tmp_path / "mine").exists()


def test_a_folder_with_a_config_is_the_model(hub, tiny_llama, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_MODELSCOPE_CACHE", str(tiny_llama))
    assert folder_of("org/none", download_dir="elsewhere") == tiny_llama
    assert hub.requests == []


def test_a_local_folder_needs_neither(hub, tiny_llama, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_METAL_MODELSCOPE_CACHE", str(tmp_path))
    assert folder_of(str(tiny_llama)) == tiny_llama
    assert hub.requests == []


# What is said


def test_no_such_model(hub):
    for revision in (None, "v2"):
        message = message_of("org/none", revision=revision)
        assert "nor a model that one may see on ModelScope" in message
        assert "MODELSCOPE_API_TOKEN" in message


def test_a_name_that_cannot_be_one(hub):
    for name in ("/models/none", "none"):
        assert "is neither a folder on this machine" in message_of(name)


@pytest.mark.parametrize("name", ["../none", "org/..", "org/../../none", "./none", "org//none"])
def test_a_name_that_leads_out_of_the_cache(hub, name):
    assert "is neither a folder on this machine" in message_of(name)
    assert hub.requests == []


def test_files_that_lead_out_of_the_cache_are_not_fetched(hub, tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "a" / "b" / "source")
    (tmp_path / "evil.json").write_text("{}")
    (tmp_path / "a" / "evil.txt").write_text("")
    wanted = {path.name for path in source.iterdir()}
    (source / "x").mkdir()
    hub.add("org/tiny", source)
    hub.also_lists = ["../../../evil.json", "x/../../../evil.txt", str(tmp_path / "evil.json")]
    folder = folder_of("org/tiny")
    assert {path.name for path in folder.iterdir()} == wanted
    assert "evil.json" not in hub.fetched
    assert "evil.txt" not in hub.fetched


def test_no_such_revision(hub, tiny_llama):
    hub.add("org/tiny", tiny_llama).revisions["v2"] = tiny_llama
    message = message_of("org/tiny", revision="v9")
    assert "has no revision 'v9'" in message
    assert "There are: master, v2." in message


def test_a_model_of_somebody_else(hub, tiny_llama):
    hub.add("org/private", tiny_llama, gated=True)
    message = message_of("org/private")
    assert "Access to 'org/private' on ModelScope" in message
    assert "MODELSCOPE_API_TOKEN" in message


def test_no_network(connect):
    connect("http://127.0.0.1:9")
    message = message_of("org/tiny", revision="v2")
    assert "Revision 'v2' of 'org/tiny' could not be fetched from ModelScope" in message
    assert "http://127.0.0.1:9" in message


def test_offline(hub, tiny_llama, offline):
    hub.add("org/tiny", tiny_llama)
    folder = folder_of("org/tiny")
    offline()
    hub.requests.clear()
    assert folder_of("org/tiny") == folder
    assert "HF_HUB_OFFLINE=1 forbids" in message_of("org/other")
    assert hub.requests == []


def test_a_server_that_dies_in_the_middle(hub, tiny_llama):
    hub.add("org/tiny", tiny_llama)
    hub.dies_in = "model.safetensors"
    message = message_of("org/tiny")
    assert "could not be fetched from ModelScope" in message
    assert "model.safetensors" in message
    assert not list(Path(os.environ["MODELSCOPE_CACHE"]).rglob("model.safetensors"))
    hub.dies_in = None
    folder = folder_of("org/tiny")
    weights = (tiny_llama / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights


def test_the_package_is_asked_for(monkeypatch):
    from vllm_metal import modelscope

    monkeypatch.setitem(sys.modules, "modelscope", None)  # as if it were not installed
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "False")
    modelscope.require_package()
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "1")
    with pytest.raises(ImportError, match=r'pip install "vllm-metal\[modelscope\]"'):
        modelscope.require_package()


@pytest.mark.slow
def test_vllm_without_the_package_says_what_to_install():
    program = "import sys; sys.modules['modelscope'] = None; import vllm.config"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"VLLM_USE_MODELSCOPE": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert result.returncode != 0
    assert 'pip install "vllm-metal[modelscope]"' in result.stderr.splitlines()[-1]


# In vLLM's configuration


def test_config_tokenizer_and_weights_are_in_one_folder(engine_config, hub, tiny_llama, tmp_path):
    hub.add("org/tiny", tiny_llama)
    config = engine_config(model="org/tiny", download_dir=str(tmp_path / "downloads")).model_config
    assert config.model == config.tokenizer
    assert Path(config.model).is_relative_to(tmp_path / "downloads")
    names = {path.name for path in Path(config.model).iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= names
    assert config.served_model_name == "org/tiny"
    assert config.hf_config.hidden_size == 64


def test_another_tokenizer_comes_without_weights(engine_config, hub, tiny_llama):
    hub.add("org/tiny", tiny_llama)
    hub.add("org/tokenizer", tiny_llama)
    config = engine_config(
        model="org/tiny", tokenizer="org/tokenizer", served_model_name="mine"
    ).model_config
    assert "tokenizer" in config.tokenizer
    assert (Path(config.tokenizer) / "tokenizer.json").is_file()
    assert not (Path(config.tokenizer) / "model.safetensors").exists()
    assert config.served_model_name == "mine"


def test_an_unsupported_architecture_is_refused_before_its_weights_come(
    engine_config, hub, tiny_llama, tmp_path
):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (source / "config.json").write_text(json.dumps(config))
    hub.add("org/qwen", source)
    with pytest.raises(ValueError, match="the architecture Qwen2ForCausalLM"):
        engine_config(model="org/qwen")
    assert "model.safetensors" not in hub.fetched


def test_an_error_of_the_hub_is_told_once(engine_config, hub):
    with pytest.raises(RuntimeError, match="nor a model that one may see on ModelScope") as caught:
        engine_config(model="org/none")
    assert caught.value.__suppress_context__
