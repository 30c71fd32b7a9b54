# SPDX-License-Identifier: Apache-2.0
"""ModelScope, where VLLM_USE_MODELSCOPE=1 has models come from; vLLM's code does the download."""

import importlib.util
from pathlib import Path

from vllm_metal import envs


def require_package() -> None:
    """Raise ImportError, with the command to install it, where the package is needed and absent."""
    if envs.uses_modelscope() and importlib.util.find_spec("modelscope") is None:
        raise ImportError(
            "VLLM_USE_MODELSCOPE is set, which needs the package modelscope: "
            'pip install "vllm-metal[modelscope]"'
        )


def given_folder() -> str | None:
    """Return VLLM_METAL_MODELSCOPE_CACHE where it is the folder of a model, else None."""
    folder = envs.modelscope_cache()
    return folder if folder and (Path(folder) / "config.json").is_file() else None


def fetch(
    name: str,
    revision: str | None,
    download_dir: str | None,
    allow: list[str],
    ignore: list[str],
) -> str:
    """Download the files that match `allow` and not `ignore`; return their folder.

    Offline (HF_HUB_OFFLINE=1, as vLLM has it for ModelScope too) it is looked up only.
    """
    from vllm.model_executor.model_loader.weight_utils import maybe_download_from_modelscope

    folder = maybe_download_from_modelscope(
        name,
        revision=revision,
        download_dir=download_dir or envs.modelscope_cache(),
        ignore_patterns=ignore,
        allow_patterns=allow,
    )
    assert folder is not None, "VLLM_USE_MODELSCOPE is set"
    return folder
