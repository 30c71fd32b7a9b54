# SPDX-License-Identifier: Apache-2.0
"""A chat under `vllm serve` with and without the prefix cache of the MLX-managed KV cache.

Each client has a conversation: a system prompt that all share, then turns of a question and an
answer, each turn with all that was said before as its prompt. Both servers run at once and take
turns; a run is a conversation of each client with one of them. Questions are random ids, others in
each run; the system prompt is the same in all, so that it is known from the warm-up on.

  first token    from sending until a turn's first token; median of the clients' turns
  output         tokens of all clients a second, from the first request to the last token
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import load
import peers
import servers
from load import VOCABULARY, Request
from machine import Machine
from measure import Result, Row, arguments

SYSTEM_LEN, QUESTION_LEN, ANSWER_LEN = 1000, 32, 32
CLIENTS, TURNS = 8, 20
SERVERS = {"on": True, "off": False}

Figures = dict[str, list[float]]  # a value a run, by name


@dataclass
class Chat:
    clients: int
    turns: int


def converse(url: str, chat: Chat, seed: int) -> list[list[Request]]:
    """Return the requests of each turn, one a client."""
    return asyncio.run(_converse(url, chat, seed))


async def _converse(url: str, chat: Chat, seed: int) -> list[list[Request]]:
    async with load.open_session(url) as session:

        async def client(number: int) -> list[Request]:
            rng = random.Random(f"{seed} {number}")
            said = random.Random("system").choices(VOCABULARY, k=SYSTEM_LEN)
            turns = []
            for _ in range(chat.turns):
                said = said + rng.choices(VOCABULARY, k=QUESTION_LEN)
                body = load.greedy(servers.MODEL, said, ANSWER_LEN) | {"return_token_ids": True}
                turns.append(await load.send(session, body))
                said = said + turns[-1].token_ids
            return turns

        clients = await asyncio.gather(*map(client, range(chat.clients)))
    return [list(turn) for turn in zip(*clients, strict=True)]


def figures(turns: list[list[Request]]) -> dict[str, float]:
    def first_token(requests: list[Request]) -> float:
        return 1000 * statistics.median(request.first - request.sent for request in requests)

    requests = [request for turn in turns for request in turn]
    seconds = max(r.last for r in requests) - min(r.sent for r in requests)
    return {
        "first turn, first token": first_token(turns[0]),
        "later turns, first token": first_token([r for turn in turns[1:] for r in turn]),
        "last turn, first token": first_token(turns[-1]),
        "output": sum(r.num_tokens for r in requests) / seconds,
        "cached": sum(r.num_cached for r in requests),
    }


def rows(measured: dict[str, Figures]) -> list[Row]:
    on, off = (measured[name] for name in SERVERS)
    result = []
    for name in on:
        if name == "cached":
            continue
        is_output = name == "output"
        row = Row(name, "tokens/s" if is_output else "ms", on[name], "without", off[name])
        row.higher_is_better = is_output
        result.append(row)
    return result


def main() -> int:
    parser = arguments(__doc__, runs=3)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    runs = 1 if options.quick else options.runs
    chat = Chat(2, 3) if options.quick else Chat(options.clients, options.turns)
    model, _, _ = peers.default_model()
    max_len = SYSTEM_LEN + chat.turns * (QUESTION_LEN + ANSWER_LEN)
    settings = {"clients": chat.clients, "turns": chat.turns, "system prompt": SYSTEM_LEN}
    settings |= {"question": QUESTION_LEN, "answer": ANSWER_LEN}
    result = Result(
        Path(__file__).name,
        Machine.here(options.threads),
        peers.versions("vllm-metal", "mlx", "vllm"),
        {"runs": runs} | settings,
    )
    served = ("--dtype", "bfloat16", "--max-model-len", str(max_len))
    served += ("--enable-prompt-tokens-details",)
    with ExitStack() as stack:
        running = {
            name: stack.enter_context(
                servers.ours(model, options.threads, *served, prefix_cache=prefix_cache)
            )
            for name, prefix_cache in SERVERS.items()
        }
        measured = servers.in_turns(
            running, runs, lambda server, seed: figures(converse(server.url, chat, seed))
        )
    result.rows += rows(measured)
    num_prompt = sum(
        SYSTEM_LEN + turn * ANSWER_LEN + (turn + 1) * QUESTION_LEN for turn in range(chat.turns)
    )
    share = statistics.median(measured["on"]["cached"]) / (chat.clients * num_prompt)
    result.notes.append(f"Of the prompts' tokens {100 * share:.1f} % were cached.")
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
