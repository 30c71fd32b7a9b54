# SPDX-License-Identifier: Apache-2.0
"""Models by name: brought into a local folder from the Hugging Face Hub or from ModelScope.

Weights, configuration, tokenizer and chat templates are fetched, code is not. Pickled weights
(pytorch_model.bin) are fetched only where there are no safetensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal import envs, modelscope
from vllm_metal.hub_errors import check_name, readable_errors
from vllm_metal.json_file import read_json
from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

logger = get_logger(__name__)

# Configuration, tokenizer, chat templates and indices of weights.
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
SAFETENSORS = ["*.safetensors"]
PICKLED_WEIGHTS = ["pytorch_model*.bin"]
# Mistral's repositories hold the weights twice; those in subfolders are of other models.
OTHER_WEIGHTS = ["consolidated*.safetensors", "*/*.safetensors", "*/*.bin"]
# A hub's list of files is not trusted with places outside of the folder they go to.
ELSEWHERE = ["/*", "../*", "*/../*"]


@dataclass(frozen=True)
class HubModel:
    """A model by name, and how to get it."""

    name: str
    revision: str | None = None
    download_dir: str | None = None
    token: str | bool | None = None
    ignore: str | list[str] | tuple[str, ...] = ()  # patterns, of a user's choice


def localize(engine_args: "EngineArgs") -> None:
    """Replace names by local folders where vLLM would not find all files in one place.

    That is with ModelScope, and offline. Else the configuration and the tokenizer are vLLM's to
    fetch, and the weights come when the model is known to be supported.
    """
    if not envs.uses_modelscope() and not _is_offline():
        return
    from vllm.transformers_utils.utils import maybe_model_redirect

    def hub_model(name: str, revision: str | None) -> HubModel:
        return HubModel(
            name,
            revision,
            engine_args.download_dir,
            engine_args.hf_token,
            engine_args.ignore_patterns,
        )

    name = maybe_model_redirect(engine_args.model)
    if engine_args.tokenizer is not None:
        tokenizer = maybe_model_redirect(engine_args.tokenizer)
        if tokenizer != name and _is_remote(tokenizer):
            revision = engine_args.tokenizer_revision or engine_args.revision
            engine_args.tokenizer = folder_of(hub_model(tokenizer, revision), weights=False)
        elif tokenizer == name:
            engine_args.tokenizer = None  # vLLM takes the model's
    if _is_remote(name):
        # A model that vLLM is about to refuse for its architecture is not worth the download.
        weights = True if engine_args.hf_overrides else None
        folder = folder_of(hub_model(name, engine_args.revision), weights)
        logger.info("The files of %s are in %s.", name, folder)
        if engine_args.served_model_name is None:
            engine_args.served_model_name = engine_args.model
        engine_args.model = folder


def folder_of(model: HubModel, weights: bool | None = True) -> str:
    """Return the local folder of a model, downloaded if need be.

    weights: None fetches them if the configuration names an architecture that is supported.
    RuntimeError says why there is no such folder and what to do.
    """
    if Path(model.name).is_dir():
        return model.name
    is_tokenizer = weights is False  # of its own, which the folder of the model does not hold
    if envs.uses_modelscope() and not is_tokenizer and (folder := modelscope.given_folder()):
        logger.info("%s is taken from VLLM_METAL_MODELSCOPE_CACHE=%s.", model.name, folder)
        return folder
    with readable_errors(model.name, model.revision):
        if envs.uses_modelscope():
            check_name(model.name)
        folder = _fetch(model, SMALL_FILES + SAFETENSORS if weights else SMALL_FILES)
        if weights is None and (weights := _is_supported(Path(folder))):
            folder = _fetch(model, SMALL_FILES + SAFETENSORS)
        if weights and not any(Path(folder).glob("*.safetensors")):
            folder = _fetch(model, SMALL_FILES + PICKLED_WEIGHTS)
    return folder


def _fetch(model: HubModel, allow: list[str]) -> str:
    chosen = [model.ignore] if isinstance(model.ignore, str) else model.ignore
    ignore = [*chosen, *OTHER_WEIGHTS, *ELSEWHERE]
    if envs.uses_modelscope():
        return modelscope.fetch(model.name, model.revision, model.download_dir, allow, ignore)
    from huggingface_hub import snapshot_download

    return snapshot_download(
        model.name,
        revision=model.revision,
        cache_dir=model.download_dir,
        token=model.token,
        allow_patterns=allow,
        ignore_patterns=ignore,
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _is_remote(name: str) -> bool:
    from vllm.transformers_utils.utils import is_cloud_storage

    return not Path(name).exists() and not is_cloud_storage(name)


def _is_supported(folder: Path) -> bool:
    """Whether the configuration names an architecture that the core has."""
    from vllm_metal import _core

    try:
        config: Any = read_json(folder / "config.json")
        return bool(set(config["architectures"]) & set(_core.supported_architectures()))
    except (OSError, ValueError, KeyError, TypeError):
        return False
