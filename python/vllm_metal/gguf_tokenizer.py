# SPDX-License-Identifier: Apache-2.0
"""The tokenizer that a GGUF file describes, as the files that Hugging Face's libraries read.

Only byte-level BPE, and only with rules for cutting text into words that are proven equal to
llama.cpp's: tests compare them with its regular expressions and the rest with transformers'
own conversion (which does not know these rules).
"""

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from vllm_metal.model_directory import write_json

_KEY = "tokenizer.ggml."
_TEMPLATE_KEY = "tokenizer.chat_template"

# Values of tokenizer.ggml.pre. "smollm": every digit is a word of its own, the rest as in GPT-2.
_PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
}

# Control tokens that end a reply under whatever key the file names them, or none.
_END_TOKENS = frozenset(
    {
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "<end_of_turn>",
        "</s>",
    }
)


class _TokenType(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer with its special token ids, None where the file names none."""

    backend: Tokenizer
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int | None
    end_token_ids: list[int]  # every token that ends a reply, eos_token_id first
    chat_template: str | None

    def save(self, directory: Path, model_max_length: int) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        # Its own save() raises bare exceptions where the disk is full.
        text = self.backend.to_str(pretty=True)
        (directory / "tokenizer.json").write_text(text, encoding="utf-8")
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model_max_length,
        }
        for role in ("bos", "eos", "pad", "unk"):
            token_id = getattr(self, f"{role}_token_id")
            if token_id is not None:
                config[f"{role}_token"] = self.backend.id_to_token(token_id)
        write_json(directory / "tokenizer_config.json", config)
        if self.chat_template is not None:
            path = directory / "chat_template.jinja"
            path.write_text(self.chat_template, encoding="utf-8")


def read_tokenizer(metadata: dict[str, Any], vocab_size: int) -> GgufTokenizer:
    """Build the tokenizer. ValueError names the metadata key that is missing or not supported."""
    _check_supported(metadata)
    tokens = _strings(metadata, "tokens")
    if len(tokens) != vocab_size:
        raise _error("tokens", f"has {len(tokens)} tokens but the embedding {vocab_size} rows")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise _error("tokens", "holds a token twice")
    types = _token_types(metadata, tokens)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=_merges(metadata, vocab)))
    backend.pre_tokenizer = _PRE_TOKENIZERS[metadata[_KEY + "pre"]]()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, tokens, types)
    eos = _token_id(metadata, "eos_token_id", vocab_size)
    if eos is None:
        raise _error("eos_token_id", "is missing")
    tokenizer = GgufTokenizer(
        backend=backend,
        bos_token_id=_token_id(metadata, "bos_token_id", vocab_size),
        eos_token_id=eos,
        pad_token_id=_first(_token_id(metadata, "padding_token_id", vocab_size), eos),
        unk_token_id=_token_id(metadata, "unknown_token_id", vocab_size),
        end_token_ids=_end_token_ids(metadata, tokens, types, eos),
        chat_template=_chat_template(metadata),
    )
    _add_template(tokenizer, metadata)
    return tokenizer


def _error(key: str, trouble: str) -> ValueError:
    return ValueError(f'[import-gguf] metadata key "{_KEY}{key}" {trouble}.')


def _first(value: int | None, fallback: int) -> int:
    return fallback if value is None else value


def _check_supported(metadata: dict[str, Any]) -> None:
    model = metadata.get(_KEY + "model")
    if model != "gpt2":
        raise _error("model", f"is {model!r}; allowed is 'gpt2' (byte-level BPE)")
    pre = metadata.get(_KEY + "pre")
    if pre not in _PRE_TOKENIZERS:
        allowed = ", ".join(map(repr, _PRE_TOKENIZERS))
        raise _error("pre", f"is {pre!r}; allowed, because proven equal, is {allowed}")
    if _flag(metadata, "add_space_prefix"):
        raise _error("add_space_prefix", "is true, which is not supported")


def _flag(metadata: dict[str, Any], key: str) -> bool:
    value = metadata.get(_KEY + key, False)
    if not isinstance(value, bool):
        raise _error(key, "must be true or false")
    return value


def _strings(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(_KEY + key)
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise _error(key, "must be an array of strings")
    return values


def _token_types(metadata: dict[str, Any], tokens: list[str]) -> list[_TokenType]:
    values = metadata.get(_KEY + "token_type")
    if not isinstance(values, list) or len(values) != len(tokens):
        raise _error("token_type", f"must be an array of {len(tokens)} numbers, one a token")
    try:
        types = [_TokenType(value) for value in values]
    except ValueError as error:
        raise _error("token_type", f"holds an unknown type: {error}") from None
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    for token, kind in zip(tokens, types, strict=True):
        if kind is _TokenType.BYTE:
            raise _error("token_type", f"marks {token!r} as a byte, unknown to byte-level BPE")
        if kind is _TokenType.NORMAL and not alphabet.issuperset(token):
            raise _error("tokens", f"holds {token!r}, not spelled in GPT-2's byte alphabet")
    return types


def _merges(metadata: dict[str, Any], vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in _strings(metadata, "merges"):
        left, separator, right = merge.partition(" ")
        if not separator or not {left, right, left + right} <= vocab.keys():
            raise _error("merges", f"holds {merge!r}, which joins no two tokens to a third")
        merges.append((left, right))
    return merges


def _add_tokens(backend: Tokenizer, tokens: list[str], types: list[_TokenType]) -> None:
    """Have control and user-defined tokens found in the text before it is cut into words."""

    def of(kind: _TokenType) -> list[AddedToken]:
        special = kind is _TokenType.CONTROL
        return [
            AddedToken(token, special=special, normalized=False)
            for token, its_kind in zip(tokens, types, strict=True)
            if its_kind is kind
        ]

    backend.add_special_tokens(of(_TokenType.CONTROL))
    backend.add_tokens(of(_TokenType.USER_DEFINED))


def _token_id(metadata: dict[str, Any], key: str, vocab_size: int) -> int | None:
    value = metadata.get(_KEY + key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise _error(key, f"must be a token id from 0 to {vocab_size - 1} but is {value!r}")
    return value


def _end_token_ids(
    metadata: dict[str, Any], tokens: list[str], types: list[_TokenType], eos: int
) -> list[int]:
    named = [_token_id(metadata, key, len(tokens)) for key in ("eot_token_id", "eom_token_id")]
    found = [
        index
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind is _TokenType.CONTROL and token in _END_TOKENS
    ]
    ids = [eos, *(token_id for token_id in named if token_id is not None), *found]
    return list(dict.fromkeys(ids))


def _chat_template(metadata: dict[str, Any]) -> str | None:
    template = metadata.get(_TEMPLATE_KEY)
    if template is not None and not isinstance(template, str):
        raise ValueError(f'[import-gguf] metadata key "{_TEMPLATE_KEY}" must be a string.')
    return template


def _add_template(tokenizer: GgufTokenizer, metadata: dict[str, Any]) -> None:
    """Begin and end every text with the tokens that the file asks for."""
    before, after = [], []
    if _flag(metadata, "add_bos_token"):
        if tokenizer.bos_token_id is None:
            raise _error("bos_token_id", "is missing but add_bos_token is true")
        before.append(tokenizer.bos_token_id)
    if _flag(metadata, "add_eos_token"):
        after.append(tokenizer.eos_token_id)
    if not before and not after:
        return
    names = {token: tokenizer.backend.id_to_token(token) for token in [*before, *after]}
    first, last = ([names[token] for token in ids] for ids in (before, after))
    tokenizer.backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", "$B:0", *last],
        special_tokens=[(name, token) for token, name in names.items()],
    )
