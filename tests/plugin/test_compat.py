# SPDX-License-Identifier: Apache-2.0
import pytest


@pytest.fixture
def shutdown_timeout(monkeypatch):
    from vllm.v1.engine import utils
    from vllm_metal import compat

    compat.apply_patches()
    return utils.get_engine_process_shutdown_timeout


@pytest.mark.parametrize(
    ("request_timeout", "process_timeout", "expected"),
    [
        (0, 0, 15.0),
        (5, 0, 0),  # the time that requests had is used up
        (0, 3, 3),
        (None, None, None),
    ],
)
def test_the_engine_has_time_to_end_by_itself(
    shutdown_timeout, request_timeout, process_timeout, expected
):
    assert shutdown_timeout(request_timeout, process_timeout) == expected


def test_patches_are_applied_once(shutdown_timeout):
    from vllm.v1.engine import utils
    from vllm_metal import compat

    compat.apply_patches()
    assert utils.get_engine_process_shutdown_timeout is shutdown_timeout
