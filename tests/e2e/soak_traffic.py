# SPDX-License-Identifier: Apache-2.0
"""Mixed traffic whose answers are known: a pool of requests that are asked again and again."""

import asyncio
import json
import keyword
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

WORDS = keyword.kwlist  # of one token or two
PREFIX_WORDS = (60, 150, 300)  # of what prompts share
POOL_SIZE = 8  # requests of each kind
TOKENS = (4, 48)  # of an answer
ABORT_SECONDS = (0.05, 3.0)
MAX_ERRORS = 100  # after which nobody asks any more

# How often each kind is asked.
WEIGHTS = {
    "short": 6,
    "long": 2,
    "shared prefix": 6,
    "streamed": 6,
    "seeded": 3,
    "several answers": 2,
    "prompt scores": 1,
    "new": 3,  # a prompt that nobody asked before
    "refused": 1,
    "aborted stream": 3,
    "aborted": 2,
}


@dataclass(frozen=True)
class Ask:
    """A request; those of the same number are alike and get the same answer."""

    kind: str
    number: int
    body: dict[str, Any]

    @property
    def num_answers(self) -> int:
        return self.body.get("n", 1)


@dataclass
class Tally:
    """What became of all requests."""

    answered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0))
    aborted: dict[str, int] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0))
    refused: int = 0
    num_answers: int = 0  # a request may have several
    num_aborted_answers: int = 0  # at most
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    compared: int = 0  # greedy answers, with what the same request was answered before
    # Likewise with a seed: a draw at the edge of two tokens may fall to either, since products
    # round by the number of rows computed together.
    seeded_compared: int = 0
    seeded_other: int = 0
    errors: list[str] = field(default_factory=list)


class Traffic:
    """Clients that ask one request after the other until a time."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.tally = Tally()
        self._url, self._model, self._seed = url, model, seed
        self._pool = _pool(random.Random(f"pool {seed}"))
        self._answers: dict[tuple[str, int], list] = {}

    async def drive(self, clients: int, seconds: float) -> None:
        """Have so many clients ask for so long, and wait for their last answers."""
        end = time.monotonic() + seconds
        async with self._session() as session:
            await asyncio.gather(
                *(
                    self._client(session, random.Random(f"{self._seed} {client}"), end)
                    for client in range(clients)
                )
            )

    async def warm_up(self) -> None:
        """Ask one request of each kind that is answered, one after the other; none is counted."""
        async with self._session() as session:
            for kind, asks in self._pool.items():
                if not kind.startswith("aborted"):
                    await self._send(session, asks[0], random.Random(0))
        self.tally = Tally()

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self._url,
            timeout=aiohttp.ClientTimeout(total=600),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def _client(self, session: aiohttp.ClientSession, rng: random.Random, end: float) -> None:
        while time.monotonic() < end and len(self.tally.errors) < MAX_ERRORS:
            (kind,) = rng.choices(list(WEIGHTS), WEIGHTS.values())
            ask = _ask_of(kind, -1, rng) if kind == "new" else rng.choice(self._pool[kind])
            try:
                await self._send(session, ask, rng)
            except Exception as error:  # whatever it is, it is told at the end
                self.tally.errors.append(f"{kind} {ask.number}: {type(error).__name__} {error}")
            await asyncio.sleep(rng.expovariate(10))

    async def _send(self, session: aiohttp.ClientSession, ask: Ask, rng: random.Random) -> None:
        seconds = rng.uniform(*ABORT_SECONDS) if ask.kind.startswith("aborted") else None
        texts = [""] * ask.num_answers
        try:
            async with asyncio.timeout(seconds):
                answer = await self._post(session, ask, texts)
        except TimeoutError:
            if seconds is None:
                raise
            self.tally.aborted[ask.kind] += 1
            self.tally.num_aborted_answers += ask.num_answers
            self._compare(ask, texts, whole=False)
            return
        if ask.kind == "refused":
            self.tally.refused += 1
            return
        self._count(ask, answer)
        self._compare(ask, texts, whole=True)

    async def _post(
        self, session: aiohttp.ClientSession, ask: Ask, texts: list[str]
    ) -> dict[str, Any]:
        """Return the usage, the finish reasons and scores; fills `texts` as they come."""
        async with session.post(
            "/v1/completions", json={"model": self._model, **ask.body}
        ) as response:
            expected = 400 if ask.kind == "refused" else 200
            assert response.status == expected, f"{response.status}: {await response.text()}"
            answer: dict[str, Any] = {"reasons": {}, "scores": {}, "usage": None}
            if ask.body.get("stream"):
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        _take(json.loads(line[6:]), answer, texts)
            elif ask.kind != "refused":
                _take(await response.json(), answer, texts)
            return answer

    def _count(self, ask: Ask, answer: dict[str, Any]) -> None:
        usage, number = answer["usage"], ask.num_answers
        assert len(answer["reasons"]) == number, f"finish reasons {answer['reasons']}"
        assert set(answer["reasons"].values()) <= {"length", "stop"}, answer["reasons"]
        assert 0 < usage["completion_tokens"] <= number * ask.body["max_tokens"], usage
        if "prompt_logprobs" in ask.body:
            first, *scores = answer["scores"][0]
            assert first is None
            assert len(scores) == usage["prompt_tokens"] - 1
        tally = self.tally
        tally.answered[ask.kind] += 1
        tally.num_answers += number
        tally.prompt_tokens += usage["prompt_tokens"]
        tally.completion_tokens += usage["completion_tokens"]
        tally.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0

    def _compare(self, ask: Ask, texts: list[str], *, whole: bool) -> None:
        """With the answer that the same request had, or what came of it."""
        if ask.number < 0:
            return
        key = (ask.kind, ask.number)
        known = self._answers.get(key)
        if known is None:
            if whole:
                self._answers[key] = texts
            return
        if "seed" in ask.body:
            self.tally.seeded_compared += 1
            self.tally.seeded_other += texts != known
            return
        self.tally.compared += 1
        for text, before in zip(texts, known, strict=True):
            same = text == before if whole else before.startswith(text)
            assert same, f"answered {text!r} but before {before!r}"


def _take(chunk: dict[str, Any], answer: dict[str, Any], texts: list[str]) -> None:
    for choice in chunk.get("choices", ()):
        index = choice["index"]
        texts[index] += choice["text"]
        if choice.get("finish_reason"):
            answer["reasons"][index] = choice["finish_reason"]
        if choice.get("prompt_logprobs"):
            answer["scores"][index] = choice["prompt_logprobs"]
    answer["usage"] = chunk.get("usage") or answer["usage"]


def _pool(rng: random.Random) -> dict[str, list[Ask]]:
    prefixes = [_words(rng, number) for number in PREFIX_WORDS]
    return {
        kind: [_ask_of(kind, number, rng, prefixes) for number in range(POOL_SIZE)]
        for kind in WEIGHTS
        if kind != "new"
    }


def _ask_of(kind: str, number: int, rng: random.Random, prefixes: list[str] | None = None) -> Ask:
    words = rng.randint(300, 800) if kind == "long" else rng.randint(1, 40)
    prompt = _words(rng, words)
    if prefixes and (kind == "shared prefix" or number % 2):
        prompt = f"{prefixes[number % len(prefixes)]} {prompt}"
    body = {"prompt": prompt, "temperature": 0.0, "max_tokens": rng.randint(*TOKENS)}
    return Ask(kind, number, body | dict(_options(kind, rng)))


def _options(kind: str, rng: random.Random) -> Iterator[tuple[str, Any]]:
    if kind in ("streamed", "aborted stream"):
        yield from {"stream": True, "stream_options": {"include_usage": True}}.items()
    if kind in ("aborted stream", "aborted"):
        yield from {"max_tokens": 200, "ignore_eos": True}.items()
    if kind in ("seeded", "several answers"):
        yield from {"temperature": 1.0, "seed": rng.randrange(1 << 31), "top_p": 0.9}.items()
    if kind == "several answers":
        yield "n", 3
    if kind == "prompt scores":
        yield "prompt_logprobs", 2
    if kind == "refused":
        yield "top_p", 7.0


def _words(rng: random.Random, number: int) -> str:
    return " ".join(rng.choices(WORDS, k=number))
