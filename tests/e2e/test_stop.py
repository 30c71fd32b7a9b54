# SPDX-License-Identifier: Apache-2.0
"""Signals while answers are being made. These tests run last: they stop the servers of all."""

import contextlib
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest

from tests.e2e.test_server import wait_for_metrics

STOP_SECONDS = 60
NUM_CLIENTS = 4


def complete(server, prompt):
    body = {"ignore_eos": True}
    options = {"model": server.name, "prompt": prompt, "max_tokens": 400, "temperature": 0.0}
    return server.client().completions.create(**options, extra_body=body)


def check_that_all_ended(server, code, children):
    assert code == 0, server.tail()
    assert children == []
    assert "nanobind: leaked" not in server.text()
    check_port_is_free(server)


def check_port_is_free(server):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do
        sock.bind(("127.0.0.1", server.port))
        sock.listen()


def read_nothing(server):
    """Ask for a stream of megabytes and leave it unread; returns the connection."""
    options = {"max_tokens": 500, "stream": True, "logprobs": 1000, "ignore_eos": True}
    body = json.dumps({"model": server.name, "prompt": "Once", **options})
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def test_sigint_under_load_and_with_a_client_that_does_not_read(server):
    def ask():
        with contextlib.suppress(Exception):  # how the connection ends is not the question
            while True:
                complete(server, "Once upon a time")

    with read_nothing(server), ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for _ in range(NUM_CLIENTS):
            pool.submit(ask)
        wait_for_metrics(server, lambda now: now["vllm:num_requests_running"] > 0)
        code, children = server.send_signal(signal.SIGINT, STOP_SECONDS)
    check_that_all_ended(server, code, children)
    assert "nothing is wired any more" in server.text()


def wait_for_connections(server, count):
    process, deadline = psutil.Process(server.pid), time.monotonic() + 60
    while True:
        connections = process.net_connections("tcp4")
        open_ones = [one for one in connections if one.laddr.port == server.port and one.raddr]
        if len(open_ones) >= count:
            return
        assert time.monotonic() < deadline, open_ones
        time.sleep(0.05)


def test_sigterm_with_an_engine_that_hangs(tiny_server):
    """Requests that the engine never read get an answer, and the server ends."""

    def ask():
        with pytest.raises(openai.InternalServerError, match="EngineCore"):
            complete(tiny_server, "w3 w4")

    tiny_server.engine().suspend()
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        asked = [pool.submit(ask) for _ in range(NUM_CLIENTS)]
        wait_for_connections(tiny_server, NUM_CLIENTS)
        time.sleep(2)  # they are with the engine, which cannot say so
        code, children = tiny_server.send_signal(signal.SIGTERM, STOP_SECONDS)
        for future in asked:
            future.result()
    check_that_all_ended(tiny_server, code, children)
