# SPDX-License-Identifier: Apache-2.0
"""A group of the self-test whose checks end in every way there is."""

import json
import os
import sys
import time

from vllm_metal.selftest import child
from vllm_metal.selftest.checks import Check, CheckFailed, Finding, Options, Skip
from vllm_metal.selftest.groups import Group

GROUP = Group("trial", "every way to end", 3, module=__name__)


def checks(_options: Options) -> list[Check]:
    return [
        Check("trial/passes", lambda: Finding(0.5, 1.0, "fine", {"answer": 42})),
        Check("trial/is_over", lambda: Finding(2.0, 1.0)),
        Check("trial/is_nan", lambda: Finding(float("nan"), 1.0)),
        Check("trial/fails", lambda: raise_(CheckFailed("it is wrong"))),
        Check("trial/raises", lambda: raise_(KeyError("nothing"))),
        Check("trial/skips", lambda: raise_(Skip("there is no reason"))),
        Check("trial/aborts", os.abort),
        Check("trial/after_abort", lambda: None),
        Check("trial/hangs", lambda: time.sleep(600)),
        Check("trial/after_hang", lambda: None),
        Check("trial/exits", lambda: os._exit(3)),
        Check("trial/prints", lambda: print("{not an event}")),
    ]


def raise_(error: Exception) -> None:
    raise error


def command(request: dict) -> list[str]:
    return [sys.executable, __file__, json.dumps(request)]


if __name__ == "__main__":
    sys.modules["tests.plugin.selftest_trial"] = sys.modules["__main__"]
    child.GROUPS = (Group("trial", "", 3, module="tests.plugin.selftest_trial"),)
    child.main()
