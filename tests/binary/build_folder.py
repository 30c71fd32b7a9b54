# SPDX-License-Identifier: Apache-2.0
"""Where the libraries and programs that these tests look at were built."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("VLLM_METAL_BUILD_DIR", ROOT / "build" / "release"))


def built(name: str) -> Path:
    """The file `name` of the build; skips the test where it was not built."""
    path = BUILD / name
    if not path.exists():
        pytest.skip(f"{path} was not built: make setup")
    return path
