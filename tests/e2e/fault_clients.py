# SPDX-License-Identifier: Apache-2.0
"""Clients of servers in trouble: a request ends properly, with an error, or too late."""

import asyncio
import contextlib
import itertools
import json
import random
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.e2e.server import Server
from tests.e2e.test_stop import check_port_is_free
from tests.plugin.tiny_model import VOCAB_SIZE

MOST_SECONDS = 30.0  # that anything may take: longer is a hang
CLEAR_GAP = 0.01  # between the two likeliest tokens, in log probability
WORDS = range(3, VOCAB_SIZE)  # of tiny models


@dataclass(frozen=True)
class Ask:
    """A greedy request, and its answer by a server at ease."""

    prompt: list[int]
    max_tokens: int
    answer: str = ""

    def body(self, server: Server, **options: Any) -> dict[str, Any]:
        return {
            "model": server.name,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            **options,
        }


LONG = Ask([5, 6, 7], 450)


@dataclass
class Outcomes:
    """What became of requests."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # of the server, or broken connections
    slowest: float = 0.0  # seconds

    def note(self, seconds: float, ask: Ask, text: str | None, error: str | None) -> None:
        self.slowest = max(self.slowest, seconds)
        if error is not None:
            self.errors.append(error)
        elif text == ask.answer:
            self.right += 1
        else:
            self.wrong.append(f"{text!r} instead of {ask.answer!r}")

    def check(self, *, right: int | None = None) -> None:
        """Nothing is wrong or late; with `right`, so many are right and there is no error."""
        assert not self.wrong, self.wrong[:3]
        assert self.slowest < MOST_SECONDS, self
        if right is not None:
            assert (self.right, self.errors[:3]) == (right, [])


async def known_asks(
    server: Server, number: int, *, max_tokens: int = 24, longest: int = 60
) -> list[Ask]:
    """Ask until there are `number` answers that do not depend on how products round."""
    generator, found = random.Random(0), []
    async with session() as http:
        while len(found) < number:
            prompt = generator.choices(WORDS, k=generator.randint(2, longest))
            ask = Ask(prompt, max_tokens)
            body = ask.body(server, logprobs=2)
            async with http.post(f"{server.url}/v1/completions", json=body) as response:
                (choice,) = (await response.json())["choices"]
            tops = [sorted(top.values()) for top in choice["logprobs"]["top_logprobs"]]
            if min(top[-1] - top[-2] for top in tops) > CLEAR_GAP:
                found.append(Ask(prompt, max_tokens, choice["text"]))
    return found


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=2 * MOST_SECONDS),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
    )


async def ask_once(
    http: aiohttp.ClientSession, server: Server, ask: Ask, outcomes: Outcomes, **options: Any
) -> bool:
    """Ask, with a stream or without; returns whether there was an answer."""
    start, text, error = time.monotonic(), None, None
    try:
        body = ask.body(server, **options)
        async with http.post(f"{server.url}/v1/completions", json=body) as response:
            if response.status != 200:
                error = f"{response.status}: {await response.text()}"
            elif options.get("stream"):
                text, error = await read_stream(response)
            else:
                (choice,) = (await response.json())["choices"]
                text, error = choice["text"], error_of(choice)
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    outcomes.note(time.monotonic() - start, ask, text, error)
    return error is None


def error_of(choice: dict[str, Any]) -> str | None:
    """Return None for an answer that came to its end; a server that stops says so."""
    reason = choice["finish_reason"]
    return None if reason in ("length", "stop") else f"finish_reason {reason}"


async def read_stream(response: aiohttp.ClientResponse) -> tuple[str, str | None]:
    """Return the text and the error that ended it, if it did not come to its end."""
    # What vLLM sends of a request that is aborted before its first token is only that it is done.
    text, error = "", "the stream is empty"
    async for line in response.content:
        if line.startswith(b"data: [DONE]"):
            return text, error
        if line.startswith(b"data: "):
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return text, str(chunk["error"])
            for choice in chunk["choices"]:
                text += choice["text"]
                error = error_of(choice)
    return text, "the stream broke off"


async def ask_all(server: Server, asks: list[Ask], outcomes: Outcomes) -> None:
    """All at once, every other one as a stream."""
    async with session() as http:
        await asyncio.gather(
            *(
                ask_once(http, server, ask, outcomes, stream=index % 2 == 0)
                for index, ask in enumerate(asks)
            )
        )


def ask_until_it_dies(server: Server, asks: list[Ask], fault: Callable[[], object]) -> None:
    """Ask, do harm, and expect every request to fail and the server to end, both in time."""
    outcomes = Outcomes()

    async def run() -> None:
        asking = asyncio.create_task(ask_all(server, asks, outcomes))
        await asyncio.to_thread(fault)
        await asking

    asyncio.run(run())
    outcomes.check()
    assert len(outcomes.errors) == len(asks), outcomes
    assert server.wait_for_exit(MOST_SECONDS) != 0
    check_port_is_free(server)
    assert "EngineDeadError: EngineCore encountered an issue" in server.tail(3)


async def vanish(http: aiohttp.ClientSession, server: Server, after_lines: int) -> None:
    """Ask for four long answers in a stream and leave after so many of its lines."""
    body = LONG.body(server, stream=True, prompt=[LONG.prompt] * 4)
    with contextlib.suppress(aiohttp.ClientError):
        async with http.post(f"{server.url}/v1/completions", json=body) as response:
            assert response.status == 200
            for _ in range(after_lines):
                await response.content.readline()
            response.close()


async def ask_meanwhile(
    server: Server, asks: list[Ask], outcomes: Outcomes, happening: Awaitable[object]
) -> None:
    """Have six clients ask again and again until it has happened, and be answered once more."""
    done = asyncio.Event()
    asking = [asyncio.create_task(_keep_asking(server, asks, outcomes, done)) for _ in range(6)]
    await happening
    done.set()
    await asyncio.gather(*asking)


async def _keep_asking(
    server: Server, asks: list[Ask], outcomes: Outcomes, done: asyncio.Event
) -> None:
    """Ask one after the other, whatever happens, until one is answered after it is done."""
    async with session() as http:
        for number, ask in enumerate(itertools.cycle(asks)):
            last = done.is_set()
            if await ask_once(http, server, ask, outcomes, stream=number % 2 == 0):
                if last:
                    return
            else:
                await asyncio.sleep(0.2)


def open_stream(server: Server, ask: Ask, **options: Any) -> socket.socket:
    """Ask for a stream over a connection that holds little."""
    body = json.dumps(ask.body(server, stream=True, **options))
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.settimeout(MOST_SECONDS)
    connection.connect(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(f"{head}{body}".encode())
    return connection
