# SPDX-License-Identifier: Apache-2.0
"""Streaming clients of an OpenAI server, and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field

import aiohttp

VOCABULARY = range(1000, 40000)  # ids that are plain text in any model served here


@dataclass
class Request:
    """Times of one request, in seconds since some start."""

    sent: float
    first: float  # token
    last: float
    num_tokens: int
    token_ids: list[int] = field(default_factory=list)  # if the body asks for them
    num_cached: int = 0  # tokens of the prompt, if the server tells


@dataclass
class Load:
    """A request of each of `clients`, all at once."""

    clients: int
    prompt_len: int
    new_tokens: int
    shared_len: int = 0  # tokens at the start of every prompt, the same in all loads


def drive(url: str, model: str, load: Load, seed: int) -> list[Request]:
    """Return the requests' times. Prompts are random ids, but for the part that all share."""
    return asyncio.run(_drive(url, model, load, seed))


async def _drive(url: str, model: str, load: Load, seed: int) -> list[Request]:
    async with open_session(url) as session:
        clients = [
            _client(session, model, load, random.Random(f"{seed} {client}"))
            for client in range(load.clients)
        ]
        return await asyncio.gather(*clients)


def open_session(url: str) -> aiohttp.ClientSession:
    """Open a session without limits; `async with` closes it."""
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(url, timeout=timeout, connector=aiohttp.TCPConnector(limit=0))


def greedy(model: str, prompt: list[int], new_tokens: int) -> dict:
    """Return the body of a request that is streamed and as long as told."""
    return {
        "model": model,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _client(
    session: aiohttp.ClientSession, model: str, load: Load, rng: random.Random
) -> Request:
    prompt = random.Random("shared").choices(VOCABULARY, k=load.shared_len)
    prompt += rng.choices(VOCABULARY, k=load.prompt_len - load.shared_len)
    return await send(session, greedy(model, prompt, load.new_tokens))


async def send(session: aiohttp.ClientSession, body: dict) -> Request:
    """Send a request and hear it out."""
    token_ids: list[int] = []
    sent = time.perf_counter()
    first = last = 0.0
    usage: dict = {}
    async with session.post("/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"The server answered {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices"):
                last = time.perf_counter()
                first = first or last
                token_ids += chunk["choices"][0].get("token_ids") or ()
            usage = chunk.get("usage") or usage
    if usage.get("completion_tokens") != body["max_tokens"]:
        raise RuntimeError(f"{body['max_tokens']} tokens were asked for, usage is {usage}")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Request(sent, first, last, usage["completion_tokens"], token_ids, cached)
