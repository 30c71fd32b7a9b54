# SPDX-License-Identifier: Apache-2.0
"""What the core needs to load a model: its folder, its config as JSON, a voice for progress."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.hub import HubModel, folder_of
from vllm_metal.json_file import read_json
from vllm_metal.log import get_logger
from vllm_metal.memory import format_bytes
from vllm_metal.unsupported import active_sliding_window

if TYPE_CHECKING:
    from vllm.config import LoadConfig, ModelConfig

logger = get_logger(__name__)


def resolve_model_directory(model_config: "ModelConfig", load_config: "LoadConfig") -> str:
    """Return the local folder of the model, downloaded if need be."""
    return folder_of(
        HubModel(
            model_config.model,
            model_config.revision,
            load_config.download_dir,
            model_config.hf_token,
            load_config.ignore_patterns,
        )
    )


def check_weight_files(model_config: "ModelConfig") -> None:
    """Refuse the bad files of a local model before vLLM starts the engine's process."""
    from vllm_metal import _core
    from vllm_metal.pytorch_weights import read_pickle

    if Path(model_config.model).is_dir():
        _core.check_weight_files(str(model_config.model), read_pickle=read_pickle)


def check_overrides(model_config: "ModelConfig") -> None:
    """Refuse --hf-overrides that lose the base of the rotary embedding, which has a default."""
    file = Path(model_config.model) / "config.json"
    if not model_config.hf_overrides or not file.is_file():
        return
    theta = _rope_theta(read_json(file))
    if theta is not None and _rope_theta(json.loads(config_json(model_config))) is None:
        raise ValueError(
            f"--hf-overrides leaves out rope_theta, which is {theta} in {file}: add "
            f'"rope_theta": {theta} to what it sets for rope_parameters or rope_scaling.'
        )


def _rope_theta(config: dict[str, Any]) -> Any:
    for settings in (config, config.get("rope_parameters"), config.get("rope_scaling")):
        if isinstance(settings, dict) and settings.get("rope_theta") is not None:
            return settings["rope_theta"]
    return None


def config_json(model_config: "ModelConfig") -> str:
    """Return the effective Hugging Face config, after --hf-overrides, as the core reads it."""
    config: dict[str, Any] = json.loads(model_config.hf_config.to_json_string(use_diff=False))
    quantization = config.get("quantization_config")
    if quantization and not quantization.get("quant_method"):
        quantization.pop("quant_method", None)  # vLLM adds an empty one
    if active_sliding_window(model_config) is None:
        config["sliding_window"] = None
    return json.dumps(config)


class LoadProgress:
    """Logs how far loading is, at most every few seconds."""

    def __init__(self, interval_seconds: float = 5.0) -> None:
        self._interval = interval_seconds
        self._last = time.monotonic()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Report `done_bytes` of `total_bytes`."""
        now = time.monotonic()
        if now - self._last < self._interval or not total_bytes:
            return
        self._last = now
        percent = 100 * done_bytes // total_bytes
        logger.info("Loading weights: %d%% of %s", percent, format_bytes(total_bytes))
