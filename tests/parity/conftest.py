# SPDX-License-Identifier: Apache-2.0
"""Pairs of tiny models, made once a session."""

from collections.abc import Callable

import pytest

from tests.parity.architectures import Row
from tests.parity.pair import Pair, make_pair


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Pair]:
    """The pair of a row."""
    made: dict[str, Pair] = {}

    def get(row: Row) -> Pair:
        if str(row) not in made:
            made[str(row)] = make_pair(row, tmp_path_factory.mktemp(str(row)))
        return made[str(row)]

    return get
