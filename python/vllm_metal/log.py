# SPDX-License-Identifier: Apache-2.0
"""Logging under vLLM's logger, so that our lines look like its own and obey its level."""

import logging

from vllm.logger import init_logger


def get_logger(name: str) -> logging.Logger:
    """Return the logger of module `name`. Only loggers below `vllm` have a handler."""
    return init_logger(f"vllm.{name}")


def forward_core_log() -> None:
    """Send the core's messages to the logger. VLLM_METAL_DEBUG=1 shows those of each step too."""
    from vllm_metal import _core, envs

    logger = get_logger("vllm_metal.core")
    # What VLLM_METAL_DEBUG asks for must not be filtered by VLLM_LOGGING_LEVEL's default.
    step_level = logging.INFO if envs.debug() else logging.DEBUG
    levels = (step_level, logging.INFO, logging.WARNING)
    _core.set_log_sink(lambda level, message: logger.log(levels[level], "%s", message))


def silence_core_log() -> None:
    """Stop calling back into Python, before the interpreter goes down."""
    from vllm_metal import _core

    _core.set_log_sink(None)
