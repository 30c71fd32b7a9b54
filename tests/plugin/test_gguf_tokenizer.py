# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of an imported model: proven equal to llama.cpp's rules and transformers' BPE."""

import json
import random

import pytest
from tokenizers import Tokenizer
from vllm_metal.import_gguf import import_gguf

from tests.plugin.llama_cpp_rules import CHARACTERS, TEXTS, pieces_of, split_like_llama_cpp
from tests.plugin.tiny_gguf import CHAT_TEMPLATE, vocabulary, write_tiny_gguf


@pytest.fixture
def tiny_directory(tmp_path):
    return import_gguf(write_tiny_gguf(tmp_path / "x.gguf"), tmp_path / "out")


def test_words_are_cut_like_llama_cpp_does(tiny_directory):
    tokenizer = Tokenizer.from_file(str(tiny_directory / "tokenizer.json"))
    choice = random.Random(0)
    texts = TEXTS + [
        "".join(choice.choices(CHARACTERS, k=choice.randint(1, 12))) for _ in range(5000)
    ]
    for text in texts:
        assert pieces_of(tokenizer, text) == split_like_llama_cpp(text), repr(text)


def test_every_digit_is_a_word(tiny_directory):
    tokenizer = Tokenizer.from_file(str(tiny_directory / "tokenizer.json"))
    # The vocabulary of this model has the token "12", which the rule keeps from being used.
    assert tokenizer.encode("hello 123").tokens == ["hello", "Ġ", "1", "2", "3"]


def test_equals_transformers_conversion_but_for_the_rules(tiny_directory, tmp_path):
    """Transformers does not know "smollm" and cuts digits like GPT-2; all else is the same."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf").backend_tokenizer
    ours = Tokenizer.from_file(str(tiny_directory / "tokenizer.json"))
    assert (
        json.loads(ours.to_str())["model"]["vocab"] == json.loads(theirs.to_str())["model"]["vocab"]
    )
    assert (
        json.loads(ours.to_str())["model"]["merges"]
        == json.loads(theirs.to_str())["model"]["merges"]
    )
    assert ours.encode("12").tokens == ["1", "2"]
    assert theirs.encode("12").tokens == ["12"]
    theirs.pre_tokenizer = ours.pre_tokenizer
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids, repr(text)
        ids = ours.encode(text).ids
        assert ours.decode(ids, False) == theirs.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_encoding(tiny_directory, text):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_directory)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_special_tokens_are_found_whole(tiny_directory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_directory)
    think = len(vocabulary()[0]) - 1
    ids = tokenizer("<|im_start|>a<think><|im_end|>").input_ids
    assert ids == [1, tokenizer.convert_tokens_to_ids("a"), think, 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<think>"
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 2
    assert tokenizer.unk_token_id is None
    assert tokenizer.model_max_length == 256
    assert len(tokenizer) == len(vocabulary()[0])


def test_chat_template(tiny_directory):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_directory)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (False, True), (True, True)])
def test_adds_the_tokens_that_the_file_asks_for(tmp_path, bos, eos):
    keys = {"tokenizer.ggml.add_bos_token": bos, "tokenizer.ggml.add_eos_token": eos}
    file = write_tiny_gguf(tmp_path / "x.gguf", metadata=keys)
    tokenizer = Tokenizer.from_file(str(import_gguf(file, tmp_path / "out") / "tokenizer.json"))
    plain = tokenizer.encode("hello", add_special_tokens=False).ids
    assert tokenizer.encode("hello").ids == [1] * bos + plain + [2] * eos


def test_end_tokens_come_from_keys_and_names(tmp_path):
    keys = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 1}
    file = write_tiny_gguf(tmp_path / "x.gguf", metadata=keys)
    config = json.loads(
        (import_gguf(file, tmp_path / "out") / "generation_config.json").read_text()
    )
    assert config["eos_token_id"] == [0, 1, 2]


TOKENS, TYPES = vocabulary()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "is 'llama'; allowed is 'gpt2'"),
        ("model", None, "is None; allowed is 'gpt2'"),
        ("pre", "default", "is 'default'; allowed, because proven equal, is 'smollm'"),
        ("pre", None, "is None"),
        ("add_space_prefix", True, "is true, which is not supported"),
        (
            "tokens",
            TOKENS[:-1],
            f"has {len(TOKENS) - 1} tokens but the embedding {len(TOKENS)} rows",
        ),
        ("tokens", [*TOKENS[:-1], TOKENS[0]], "holds a token twice"),
        ("tokens", [*TOKENS[:50], "tab\there", *TOKENS[51:]], "holds 'tab\\there'"),
        ("token_type", TYPES[:-1], "one a token"),
        ("token_type", [9, *TYPES[1:]], "unknown type: 9"),
        ("token_type", [*TYPES[:-1], 6], "marks '<think>' as a byte"),
        ("merges", ["h q"], "holds 'h q', which joins no two tokens to a third"),
        ("merges", ["he"], "holds 'he'"),
        ("merges", [" he"], "holds ' he'"),
        ("eos_token_id", None, "is missing"),
        ("eos_token_id", len(TOKENS), f"must be a token id from 0 to {len(TOKENS) - 1}"),
        ("bos_token_id", 2**32 - 1, "must be a token id"),
        ("add_bos_token", 1, "must be true or false"),
    ],
)
def test_refuses_by_name(tmp_path, key, value, message):
    file = write_tiny_gguf(tmp_path / "x.gguf", metadata={f"tokenizer.ggml.{key}": value})
    with pytest.raises(ValueError, match="import-gguf") as error:
        import_gguf(file, tmp_path / "out")
    assert f'"tokenizer.ggml.{key}" ' in str(error.value)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
