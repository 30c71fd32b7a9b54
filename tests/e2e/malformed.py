# SPDX-License-Identifier: Apache-2.0
"""A flood of requests made from the server's own OpenAPI document: some fit it, some do not."""

import contextlib
import json
import re
import urllib.request
from dataclasses import dataclass, field

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from tests.e2e.fault_clients import MOST_SECONDS
from tests.e2e.server import Server

# Endpoints for whoever runs the server, which stop or change it as they should; vLLM has them only
# when asked for them. Those that exchange weights are not supported.
ADMINISTRATION = re.compile(
    r"/(sleep|wake_up|is_sleeping|pause|resume|is_paused|collective_rpc|reset_\w+|server_info"
    r"|release_kv_cache_memory|scale_elastic_ep|is_scaling_elastic_ep|\w+_profile|abort_requests"
    r"|\w*weight\w*|get_world_size)$"
)


@dataclass
class Flood:
    """What a server answers to requests made from its own description."""

    server: Server
    # For patterns of endpoints, the text of an error 5xx that vLLM is known to answer with.
    known_errors: dict[str, str]
    examples: int  # of each endpoint, fitting and unfitting
    statuses: dict[int, int] = field(default_factory=dict)
    server_errors: list[str] = field(default_factory=list)  # that are not known

    def run(self) -> None:
        schema = schemathesis.openapi.from_dict(_openapi(self.server))
        with requests.Session() as http:
            for result in schema.get_all_operations():
                operation = result.ok()
                if not ADMINISTRATION.match(operation.path):
                    for mode in GenerationMode:
                        self._send_examples(http, operation, mode)

    def _send_examples(self, http, operation, mode) -> None:
        @seed(0)
        @settings(
            max_examples=self.examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case):
            if isinstance(case.body, dict) and case.body.get("model"):
                case.body["model"] = self.server.name  # else there would be nothing but 404
            response = case.call(base_url=self.server.url, session=http, timeout=MOST_SECONDS)
            self._note(response, f"{operation.method.upper()} {operation.path}")

        with contextlib.suppress(Unsatisfiable):  # nothing of this endpoint can be unfitting
            send()

    def _note(self, response, endpoint: str) -> None:
        status = response.status_code
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status < 500 or any(
            re.match(pattern, endpoint) and re.search(text, response.text)
            for pattern, text in self.known_errors.items()
        ):
            return
        body = response.request.body
        self.server_errors.append(f"{endpoint} {status} {response.text[:300]} to {body!r:.600}")


def _openapi(server: Server) -> dict:
    with urllib.request.urlopen(f"{server.url}/openapi.json", timeout=MOST_SECONDS) as response:
        return json.load(response)
