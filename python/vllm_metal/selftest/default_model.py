# SPDX-License-Identifier: Apache-2.0
"""The model that is served: the user's, or the default one."""

from pathlib import Path

from vllm_metal.default_model import NAME, ensure_default_model
from vllm_metal.model_directory import ModelDirectoryError, cache_directory, verify_model_dir
from vllm_metal.selftest.checks import Options, Skip


def served_model(options: Options, fetch: bool) -> Path:
    """Return its directory. Skip tells why it is not there, and may not or cannot be fetched."""
    if options.model is not None:
        return Path(options.model)
    directory = cache_directory() / "models" / NAME
    try:
        verify_model_dir(directory)
    except ModelDirectoryError:
        if not fetch:
            raise Skip(f"{NAME} is not on this machine; --model names another") from None
    else:
        return directory
    if options.offline:
        raise Skip(f"{NAME} is not on this machine, and --offline forbids to fetch it")
    try:
        return ensure_default_model()
    except (RuntimeError, OSError) as error:
        raise Skip(f"{NAME} could not be fetched: {error}") from error
