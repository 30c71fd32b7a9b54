# SPDX-License-Identifier: Apache-2.0
"""Stands in for `vllm serve` where the self-test's look at a server is tested.

The first argument says what is wrong with it; the others are those of `vllm`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

FAULT = sys.argv[1]
ANSWER = "Paris, of course."


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._reply(200, b"")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if FAULT == "refuses":
            self._reply(400, b'{"error": "no such model"}')
        elif body["stream"]:
            self._reply(200, self._events().encode())
        else:
            self._reply(200, json.dumps({"choices": [{"message": {"content": answer()}}]}).encode())

    def _events(self) -> str:
        pieces = [answer()[:7], "of cause." if FAULT == "streams another" else answer()[7:]]
        deltas = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
        lines = [f"data: {json.dumps(delta)}\n\n" for delta in deltas]
        return "".join(lines) + ("" if FAULT == "breaks off" else "data: [DONE]\n\n")

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)


def answer() -> str:
    if FAULT == "says nothing":
        return " "
    paged = os.environ["VLLM_METAL_USE_PAGED_ATTENTION"] == "1"
    return "Paris, I think." if FAULT == "differs when paged" and paged else ANSWER


def end(*_: object) -> None:
    if FAULT == "does not end":
        return
    if FAULT == "leaves a child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    os._exit(7 if FAULT == "ends badly" else 0)


if __name__ == "__main__":
    if FAULT == "does not start":
        sys.exit("libmlx is missing")
    if FAULT == "does not answer":
        time.sleep(60)
    signal.signal(signal.SIGTERM, end)
    arguments = sys.argv[2:]
    port = int(arguments[arguments.index("--port") + 1])
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()
