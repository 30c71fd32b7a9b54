# SPDX-License-Identifier: Apache-2.0
"""Whether prompts that begin alike are computed once: what options and variables say of it.

The paged KV cache leaves it to vLLM, whose blocks are shared. The MLX-managed one has a prefix
cache of its own (`prefix_cache.py`), which vLLM's scheduler takes for a KV connector.
"""

from typing import TYPE_CHECKING, Any

from vllm_metal import envs
from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.engine.arg_utils import EngineArgs

logger = get_logger(__name__)

_CONNECTOR = "MetalPrefixCacheConnector"
_MODULE = "vllm_metal.prefix_cache"


def settle(engine_args: "EngineArgs") -> None:
    """Settle on it in vLLM's arguments. Options come before VLLM_METAL_PREFIX_CACHE.

    Done here since vLLM switches its own on by default and nothing tells that from a user's wish
    later. Again with the same arguments it does nothing.
    """
    if is_ours(engine_args.kv_transfer_config):
        return
    asked, variable = engine_args.enable_prefix_caching, envs.prefix_cache()
    if asked is not None and variable is not None and asked != variable:
        logger.warning(
            "VLLM_METAL_PREFIX_CACHE=%d is ignored: --%senable-prefix-caching is given.",
            variable,
            "" if asked else "no-",
        )
    if envs.paged_attention():
        engine_args.enable_prefix_caching = asked if asked is not None else variable
        return
    engine_args.enable_prefix_caching = False  # blocks do not hold keys and values
    if not (variable if asked is None else asked):
        return
    if asked:
        logger.info(
            "--enable-prefix-caching switches on the prefix cache of the MLX-managed KV cache, as "
            "VLLM_METAL_PREFIX_CACHE=1 does."
        )
    if engine_args.kv_transfer_config is None:  # another one is refused by name
        engine_args.kv_transfer_config = transfer_config()


def transfer_config() -> "KVTransferConfig":
    """Return what makes vLLM's scheduler ask our prefix cache.

    As a producer: of a consumer, vLLM holds back the blocks of requests that end while a step is
    under way, lest something be loaded into them meanwhile. Ours loads in the order of steps.
    """
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector=_CONNECTOR, kv_connector_module_path=_MODULE, kv_role="kv_producer"
    )


def is_ours(config: Any) -> bool:
    """Whether a KVTransferConfig is our prefix cache's, which only the MLX-managed KV cache has."""
    names = (getattr(config, name, None) for name in ("kv_connector", "kv_connector_module_path"))
    return tuple(names) == (_CONNECTOR, _MODULE) and not envs.paged_attention()


def is_on(vllm_config: "VllmConfig") -> bool:
    """Whether the MLX-managed KV cache has a prefix cache."""
    return is_ours(vllm_config.kv_transfer_config)
