# SPDX-License-Identifier: Apache-2.0
"""Two minutes of mixed traffic; `python -m tests.e2e.soak` does the same for as long as wanted."""

from tests.e2e import soak
from tests.e2e.server import Server

SECONDS = 120
CLIENTS = 12


def test_two_minutes(default_model, tmp_path):
    """A server of its own, with too little room for all: it preempts, and shares prefixes."""
    log = tmp_path / "server.log"
    with Server(
        default_model, log, *soak.SERVER_ARGUMENTS, variables=soak.MODES["paged"]
    ) as server:
        found = soak.run_soak(server, mode="paged", seconds=SECONDS, clients=CLIENTS)
    print(found.summary())
    assert found.passed, found.summary()
