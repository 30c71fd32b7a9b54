# SPDX-License-Identifier: Apache-2.0
"""Streaming clients of an OpenAI server, and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass

import aiohttp

VOCABULARY = range(1000, 40000)  # ids that are plain text in any model served here


@dataclass
class Request:
    """Times of one request, in seconds since some start."""

    sent: float
    first: float  # token
    last: float
    num_tokens: int


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
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:
        clients = [
            _client(session, model, load, random.Random(f"{seed} {client}"))
            for client in range(load.clients)
        ]
        return await asyncio.gather(*clients)


async def _client(
    session: aiohttp.ClientSession, model: str, load: Load, rng: random.Random
) -> Request:
    body = {
        "model": model,
        "max_tokens": load.new_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    prompt = random.Random("shared").choices(VOCABULARY, k=load.shared_len)
    prompt += rng.choices(VOCABULARY, k=load.prompt_len - load.shared_len)
    return await _send(session, body | {"prompt": prompt})


async def _send(session: aiohttp.ClientSession, body: dict) -> Request:
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
            usage = chunk.get("usage") or usage
    if usage.get("completion_tokens") != body["max_tokens"]:
        raise RuntimeError(f"{body['max_tokens']} tokens were asked for, usage is {usage}")
    return Request(sent, first, last, usage["completion_tokens"])
