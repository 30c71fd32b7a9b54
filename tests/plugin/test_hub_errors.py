# SPDX-License-Identifier: Apache-2.0
"""Models of the Hugging Face Hub: what is fetched, and what is said when something is wrong."""

import json
import shutil
from types import SimpleNamespace

import pytest

from tests.plugin.hub_stand_in import folder_of, message_of

NOTHING_LISTENS = "http://127.0.0.1:9"


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Return a function that points huggingface_hub at a URL; nothing is cached yet."""
    from huggingface_hub import constants

    def point(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    monkeypatch.delenv("VLLM_USE_MODELSCOPE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return point


@pytest.fixture
def quick_retries(monkeypatch):
    """Have huggingface_hub wait for nothing before it tries again."""
    from huggingface_hub.utils import _http

    # There alone: others of this process sleep, too.
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))


def another_model(source, directory, **changes):
    """Copy a model with changes of its config.json."""
    shutil.copytree(source, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))
    return directory


# What is fetched


def test_weights_and_all_that_a_tokenizer_needs_but_no_code(hub, tiny_llama, tmp_path):
    source = shutil.copytree(tiny_llama, tmp_path / "source")
    others = ["modeling.py", "pytorch_model.bin", "consolidated.00.safetensors", "model.gguf"]
    for name in [*others, "chat_template.jinja", "merges.txt", "tokenizer.model"]:
        (source / name).write_text("content")
    (source / "onnx").mkdir()
    (source / "onnx" / "model.safetensors").write_text("content")
    hub.add("org/tiny", source)
    folder = folder_of("org/tiny")
    wanted = {path.name for path in source.iterdir()} - {*others, "onnx"}
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == wanted
    weights = (source / "model.safetensors").read_bytes()
    assert (folder / "model.safetensors").read_bytes() == weights


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
    other = another_model(tiny_llama, tmp_path / "other", rms_norm_eps=0.125)
    hub.add("org/tiny", tiny_llama).revisions["v2"] = other
    for revision in ("v2", "main", None):
        folder = folder_of("org/tiny", revision=revision)
        epsilon = json.loads((folder / "config.json").read_text())["rms_norm_eps"]
        assert (epsilon == 0.125) == (revision == "v2")


def test_a_download_directory_holds_all_and_serves_offline(hub, tiny_llama, tmp_path, offline):
    hub.add("org/tiny", tiny_llama)
    where = str(tmp_path / "downloads")
    folder = folder_of("org/tiny", download_dir=where)
    assert folder.is_relative_to(where)
    hub.requests.clear()
    offline()
    assert folder_of("org/tiny", download_dir=where) == folder
    assert hub.requests == []


def test_a_cached_model_needs_no_network(hub, connect, tiny_llama, quick_retries):
    hub.add("org/tiny", tiny_llama)
    folder = folder_of("org/tiny")
    connect(NOTHING_LISTENS)
    assert folder_of("org/tiny") == folder


def test_patterns_of_the_user_are_ignored(hub, tiny_llama):
    hub.add("org/tiny", tiny_llama)
    assert not (folder_of("org/tiny", ignore="generation*") / "generation_config.json").exists()


def test_a_token_opens_a_gated_model(hub, tiny_llama):
    hub.add("org/gated", tiny_llama, gated=True, token="good")
    assert (folder_of("org/gated", token="good") / "model.safetensors").is_file()


# What is said


def test_no_such_model(hub):
    message = message_of("org/none")
    assert "neither a folder on this machine nor a model that one may see on" in message
    assert hub.url in message
    assert "Check the spelling; for a private model give a token (HF_TOKEN, --hf-token" in message


@pytest.mark.parametrize("name", ["/models/none", "a/b/c", "models/none/"])
def test_a_name_that_cannot_be_one(hub, name):
    assert "which looks like 'owner/name'" in message_of(name)


def test_no_such_revision(hub, tiny_llama):
    hub.add("org/tiny", tiny_llama).revisions["v2"] = tiny_llama
    message = message_of("org/tiny", revision="v9")
    assert "has no revision 'v9'" in message
    assert "--revision takes a branch, a tag or a commit. There are: main, v2." in message


@pytest.mark.parametrize("token", [None, "of somebody else"])
def test_a_gated_model(hub, tiny_llama, token):
    hub.add("org/gated", tiny_llama, gated=True, token="good")
    message = message_of("org/gated", token=token)
    assert f"accept its terms at {hub.url}/org/gated" in message
    assert "HF_TOKEN" in message
    assert message_of("org/gated", token=token, revision="main") == message


def test_offline_and_not_cached(hub, tiny_llama, offline):
    hub.add("org/tiny", tiny_llama)
    offline()
    message = message_of("org/tiny", revision="v2")
    assert message.startswith("Revision 'v2' of 'org/tiny' is not complete in the cache")
    assert "HF_HUB_OFFLINE=1 forbids" in message
    assert hub.requests == []


def test_offline_and_half_cached(hub, tiny_llama, offline):
    hub.add("org/tiny", tiny_llama)
    (folder_of("org/tiny") / "model.safetensors").unlink()
    offline()
    assert "is not complete in the cache" in message_of("org/tiny")


def test_no_network(connect, quick_retries):
    connect(NOTHING_LISTENS)
    message = message_of("org/tiny", revision="v2")
    assert message.startswith("Revision 'v2' of 'org/tiny' could not be fetched from")
    assert NOTHING_LISTENS in message
    assert "Connection refused" in message
    assert "Check the network" in message


def test_a_hub_that_dies_in_the_middle(hub, tiny_llama, quick_retries):
    hub.add("org/tiny", tiny_llama)
    hub.dies_in = "model.safetensors"
    assert "could not be fetched" in message_of("org/tiny")
    hub.dies_in = None
    weights = (tiny_llama / "model.safetensors").read_bytes()
    assert (folder_of("org/tiny") / "model.safetensors").read_bytes() == weights


# Before anything of vLLM's engine starts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "org/none"}, "'org/none' is neither a folder"),
        ({"model": "org/tiny", "revision": "v9"}, "has no revision 'v9'"),
        ({"model": "org/gated"}, "Access to 'org/gated' is restricted"),
        ({"model": "/models/none"}, "which looks like 'owner/name'"),
    ],
)
def test_vllm_says_the_same(engine_config, hub, tiny_llama, arguments, message):
    hub.add("org/tiny", tiny_llama)
    hub.add("org/gated", tiny_llama, gated=True, token="good")
    with pytest.raises(RuntimeError, match=message) as caught:
        engine_config(**arguments)
    assert caught.value.__suppress_context__


def test_vllm_offline_finds_the_download_directory(
    engine_config, hub, tiny_llama, tmp_path, offline
):
    hub.add("org/tiny", tiny_llama)
    where = str(tmp_path / "downloads")
    folder = folder_of("org/tiny", download_dir=where)
    offline()
    config = engine_config(model="org/tiny", download_dir=where).model_config
    assert config.model == config.tokenizer == str(folder)
    assert config.served_model_name == "org/tiny"


def test_vllm_offline_without_the_model(engine_config, hub, offline):
    offline()
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE=1 forbids"):
        engine_config(model="org/tiny")


def test_other_errors_are_as_they_were(engine_config, hub, tiny_llama):
    with pytest.raises(ValueError, match="tensor parallelism"):
        engine_config(tensor_parallel_size=2)
