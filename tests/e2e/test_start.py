# SPDX-License-Identifier: Apache-2.0
"""What the server says when it starts, and when it cannot."""

import json
import os

import pytest

from tests.e2e.server import Server


def test_start_reports_device_and_memory(server):
    text = server.text()
    assert "Device " in text
    assert "KV cache up to 1023.75 MiB, 23,296 tokens" in text  # 1 GiB in whole blocks


def test_no_telemetry_and_no_warning_of_our_variables(server):
    assert "Unknown vLLM environment variable detected: VLLM_M" not in server.text()


@pytest.fixture
def broken_copy(default_model, tmp_path):
    """Make a copy of the model with one file replaced."""

    def make(name, content):
        directory = tmp_path / "broken"
        directory.mkdir()
        for file in default_model.iterdir():
            if file.name != name:
                os.link(file, directory / file.name)
        (directory / name).write_bytes(content)
        return directory

    return make


def refusal(model, tmp_path, *arguments):
    """Start a server that cannot start; returns its exit code and what it said."""
    server = Server(model, tmp_path / "server.log", *arguments)
    server.start()
    try:
        return server.wait_for_exit(), server.text()
    finally:
        server.stop()


def test_truncated_weights(broken_copy, default_model, tmp_path):
    content = (default_model / "model.safetensors").read_bytes()
    code, text = refusal(broken_copy("model.safetensors", content[:-1000]), tmp_path)
    assert code != 0
    assert "model.safetensors" in text
    assert "Traceback" in text  # vLLM's; our message stands in it
    assert "KV cache up to" not in text


def test_unsupported_architecture(broken_copy, default_model, tmp_path):
    config = json.loads((default_model / "config.json").read_text())
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    model = broken_copy("config.json", json.dumps(config).encode())
    code, text = refusal(model, tmp_path)
    assert code != 0
    assert "the architecture Qwen2ForCausalLM" in text
    assert "LlamaForCausalLM" in text
