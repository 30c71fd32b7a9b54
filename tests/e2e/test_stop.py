# SPDX-License-Identifier: Apache-2.0
"""Signals while answers are being made. These tests run last: they stop the servers of all."""

import contextlib
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.test_server import metrics, wait_until

STOP_SECONDS = 30


def stop_while_generating(server, number, prompt):
    """Send a signal while answers are made; returns the exit code and the children left."""
    body = {"ignore_eos": True}
    options = {"model": server.name, "prompt": prompt, "max_tokens": 400, "temperature": 0.0}

    def ask():
        with contextlib.suppress(Exception):  # how the connection ends is not the question
            while True:  # a tiny model is done in no time
                server.client().completions.create(**options, extra_body=body)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(ask)
        wait_until(lambda: metrics(server)["vllm:num_requests_running"] > 0)
        return server.send_signal(number, STOP_SECONDS)


@pytest.mark.parametrize(
    ("fixture", "number", "prompt"),
    [("server", signal.SIGINT, "Once upon a time"), ("tiny_server", signal.SIGTERM, "w3 w4")],
    ids=["SIGINT", "SIGTERM"],
)
def test_signal_ends_all_and_frees_the_port(request, fixture, number, prompt):
    server = request.getfixturevalue(fixture)
    code, children = stop_while_generating(server, number, prompt)
    assert code == 0, server.tail()
    assert children == []
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        sock.bind(("127.0.0.1", server.port))
        sock.listen()
