# SPDX-License-Identifier: Apache-2.0
"""What every test may rely on."""

import signal

import pytest

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that; tests
# of an interrupted command need it to be heard.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Keep together what shares servers and engines when pytest-xdist deals tests to processes."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        group = parameters.get("kv_cache_mode") or str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
