# SPDX-License-Identifier: Apache-2.0
"""Writes tiny random models, with a tokenizer of 96 words, for tests without a network."""

import json
from pathlib import Path

VOCAB_SIZE = 96
BOS, EOS, UNKNOWN = 0, 1, 2

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def write_tiny_llama(directory: Path, **config_changes) -> Path:
    """Write weights, config and tokenizer of a Llama with two layers; returns `directory`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "rope_parameters": LLAMA3_ROPE,
            **config_changes,
        }
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """Write a tokenizer whose words are `w3` to `w95`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN}
    words |= {f"w{token}": token for token in range(3, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


def copy_with_config(source: Path, directory: Path, **changes) -> Path:
    """Copy a model, with keys of its config.json changed; the weights are shared."""
    directory.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "config.json":
            (directory / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory
