# SPDX-License-Identifier: Apache-2.0
"""The process that runs the checks of one group: `python -m vllm_metal.selftest.child JSON`.

It writes a line of JSON for each thing that happens: `names` of all checks, `started` one, its
`result`, and `ended`. A process that is gone without that last line crashed in the check it
started last.
"""

import json
import os
import resource
import signal
import sys
from typing import Any, TextIO

from vllm_metal.selftest.checks import Options, matches, run_check
from vllm_metal.selftest.groups import GROUPS, Group


def serve(group: Group, options: Options, request: dict[str, Any], events: TextIO) -> None:
    """Run the checks that are meant and not among those to skip."""

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    checks = [check for check in group.checks(options) if matches(check.name, request["only"])]
    tell(names=[check.name for check in checks])
    if not request["list"]:
        for check in checks:
            if check.name in request["skip"]:
                continue
            tell(started=check.name)
            tell(result=run_check(check).to_json())
    tell(ended=True)


def main() -> None:
    """Run what the first argument says."""
    request = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is reported, not stored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what a check opened is closed
    # Libraries print to standard output; events have it to themselves.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    (group,) = [group for group in GROUPS if group.name == request["group"]]
    serve(group, Options(**request["options"]), request, events)
    events.close()


if __name__ == "__main__":
    main()
