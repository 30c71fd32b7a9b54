# SPDX-License-Identifier: Apache-2.0
"""How llama.cpp cuts text into words, by its own regular expressions."""

import regex
from tokenizers import Tokenizer

# llama.cpp's rules for "smollm", applied one after the other to each piece; what a rule does
# not match between two matches stays a piece. White space is Unicode's property there.
SMOLLM_RULES = [
    r"\p{N}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+"
    r"|\p{White_Space}+(?!\P{White_Space})",
]

# One character and more of every class that the rules tell apart.
CHARACTERS = (
    "aZé中ßͅ '\u2019\"!?._-€\t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2003\u2028\u202f\u3000\ufeff"
    "0459²½Ⅷ٣\uff17\u3007\u0301\u200d😀 stmdvelr"
)

TEXTS = [
    "Hello world",
    "In 2024 there were 12,345.67 reasons — didn't you'll we've I'm he's they'd we're?",
    "  leading, trailing  \n\n and\t\ttabs \r\n",
    "naïve café 中文字符 Привет мир שלום 🤗👩‍👩‍👧 x²½Ⅷ",
    "def f(x):\n    return x**2  # 42\n",
    "",
    " ",
    "<|im_start|>user\nhi<|im_end|>\n<think>hm</think>",
]


def split_like_llama_cpp(text: str) -> list[str]:
    pieces = [text]
    for rule in SMOLLM_RULES:
        pieces = [part for piece in pieces for part in split_by(rule, piece)]
    return pieces


def split_by(rule: str, text: str) -> list[str]:
    parts, end = [], 0
    for match in regex.finditer(rule, text):
        parts += [text[end : match.start()], match.group()]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part]


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [text[begin:end] for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
