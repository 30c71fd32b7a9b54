# SPDX-License-Identifier: Apache-2.0
"""What the real model is asked: conversations, plain text, from one token to 1,500."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.reference import Reference

NUM_TOKENS = 64

# Of the tiny model.
NAN_TOKEN = 95
THOUGHT_TOKENS = {93: "<think>", 94: "</think>"}

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

_STORY = (
    "The lighthouse keeper wrote down the weather every evening. On Monday the wind came from "
    "the west and two ships passed. On Tuesday there was fog, and the bell rang until morning. "
    "On Wednesday a letter arrived, the first in nine weeks, and he read it twice. "
)


@dataclass(frozen=True)
class Prompt:
    """A conversation, or a text of `num_tokens` tokens at most."""

    name: str
    text: str | None = None
    num_tokens: int | None = None
    messages: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name

    def chat(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.messages]

    def token_ids(self, reference: "Reference") -> list[int]:
        if self.messages:
            return reference.chat_tokens(self.chat())
        return reference.tokenizer.encode(self.text)[: self.num_tokens]


PROMPTS = (
    Prompt("one-token", text="The", num_tokens=1),
    Prompt("two-tokens", text="Once upon", num_tokens=2),
    Prompt("sentence", text="The capital of France is"),
    Prompt("code", text="def fibonacci(n):\n    if n < 2:\n        return n\n    return"),
    Prompt("numbers", text="2, 4, 6, 8, 10, 12, 14,"),
    Prompt("question", messages=(("user", "What is the largest planet of the solar system?"),)),
    Prompt(
        "with-system",
        messages=(
            ("system", "You answer in one short sentence."),
            ("user", "Why is the sky blue?"),
        ),
    ),
    Prompt(
        "conversation",
        messages=(
            ("user", "My name is Ada and I like bridges."),
            ("assistant", "Nice to meet you, Ada. Which bridge do you like most?"),
            ("user", "The one at home. Write a short poem about it, with my name in it."),
        ),
    ),
    Prompt(
        "unicode", messages=(("user", "Übersetze ins Englische: Schöne Grüße aus Köln! 你好 🙂"),)
    ),
    Prompt("page", text=_STORY * 6, num_tokens=300),
    Prompt("long", text=_STORY * 40, num_tokens=1500),
    Prompt(
        "long-conversation",
        messages=(("user", f"{_STORY * 15}\nOn which day did the letter arrive?"),),
    ),
)
