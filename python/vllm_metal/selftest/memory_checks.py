# SPDX-License-Identifier: Apache-2.0
"""What the device reports, the memory plan of models, that it is kept, and requests too large."""

import functools
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_metal.memory import format_bytes
from vllm_metal.selftest.checks import Check, CheckFailed, Finding, Options, Skip
from vllm_metal.selftest.default_model import served_model
from vllm_metal.selftest.greedy import load_core
from vllm_metal.selftest.tiny_models import MODELS, write_model
from vllm_metal.selftest.traffic import BLOCK_SIZE

if TYPE_CHECKING:
    from vllm_metal import _core

_STEP_TOKENS, _STEP_REQUESTS = 256, 8
_LEFT_BYTES = 1 << 20  # of arrays that the core keeps: random keys and the like


def checks(options: Options) -> list[Check]:
    """Return them; the plan of the model to serve is made where that is on this machine."""
    work = Path(options.work)
    return [
        Check("memory/device", _device),
        Check("memory/plan/tiny_model", functools.partial(_plan_is_kept, lambda: _tiny(work))),
        Check(
            "memory/plan/served_model",
            functools.partial(_plan_is_kept, lambda: served_model(options, fetch=False)),
        ),
        Check("memory/wired_limit", _wired_limit),
        Check("memory/refusals", _refusals),
    ]


def _tiny(work: Path) -> Path:
    return write_model(MODELS[0], work / "memory")


def _device() -> Finding:
    from vllm_metal import _core

    info = _core.device_info()
    total, available, recommended = (
        info[name] for name in ("total_memory", "available_memory", "working_set")
    )
    if not 0 < available <= total or not 0 < recommended <= total:
        raise CheckFailed(f"total {total}, available {available}, working_set {recommended} bytes")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if info["backend"] != "cuda" and total > physical:  # the memory is the machine's own
        raise CheckFailed(f"the device has {total} bytes, the machine {physical}")
    if (pressure := _core.memory_pressure()) not in ("normal", "warning", "critical"):
        raise CheckFailed(f"the memory pressure is {pressure}")
    detail = f"{format_bytes(total)}, {format_bytes(available)} available, pressure {pressure}"
    return Finding(detail=detail, figures={"working_set": recommended, "pressure": pressure})


@dataclass(frozen=True)
class _Needs:
    """What a plan is made of."""

    max_model_len: int
    sizes: dict[str, Any]  # bytes, as _core.plan_memory names them

    def plan(self, **wishes: Any) -> "_core.MemoryPlan":
        """Make the plan; without wishes that of VLLM_METAL_MEMORY_FRACTION."""
        from vllm_metal import _core

        return _core.plan_memory(
            **self.sizes, block_size=BLOCK_SIZE, max_model_len=self.max_model_len, **wishes
        )


def _load(directory: Path) -> "tuple[_core.ModelRunner, _Needs]":
    from vllm_metal import _core

    info = _core.device_info()
    runner, config, dtype = load_core(directory)
    item_bytes = 4 if dtype == "float32" else 2
    token_bytes = 2 * runner.num_layers * runner.num_kv_heads * runner.head_dim * item_bytes
    sizes = {
        **{key: info[f"{key}_memory"] for key in ("total", "available")},
        "working_set": info["working_set"],
        "model": runner.weight_bytes,
        "activations": runner.measure_activations(_STEP_TOKENS, _STEP_REQUESTS),
        "block_bytes": token_bytes * BLOCK_SIZE,
    }
    return runner, _Needs(config["max_position_embeddings"], sizes)


def _run_a_step(runner: "_core.ModelRunner", num_blocks: int) -> None:
    """Compute the largest step that the activations were measured of."""
    from vllm_metal import _core

    runner.initialize_kv_cache(num_blocks * BLOCK_SIZE, BLOCK_SIZE)
    prompt = list(range(3, 3 + _STEP_TOKENS // _STEP_REQUESTS))
    names = [f"r{i}" for i in range(_STEP_REQUESTS)]
    greedy = _core.SamplingParams(temperature=0.0)
    runner.step(
        new_requests=[(name, prompt, 0, greedy) for name in names],
        scheduled=[(name, 0, len(prompt)) for name in names],
    )


def _plan_is_kept(directory: Callable[[], Path]) -> Finding:
    """Load, plan, set the limits, compute within them, and give everything back."""
    from vllm_metal import _core

    _core.return_unused_memory()
    before = _core.memory_stats()["active"]
    runner, needs = _load(directory())
    plan = needs.plan()
    model = needs.sizes["model"]
    _core.apply_memory_limits(plan)
    try:
        _run_a_step(runner, plan.kv_cache // needs.sizes["block_bytes"])
        active = _core.memory_stats()["active"]
    finally:
        _core.release_memory_limits()
    if active - before < model:
        raise CheckFailed(f"{active - before} bytes are in use with a model of {model}")
    if active > plan.memory_limit:
        raise CheckFailed(f"{active} bytes are in use, MLX's limit is {plan.memory_limit}")
    del runner
    gc.collect()
    _core.return_unused_memory()
    left = _core.memory_stats()["active"] - before
    if left > _LEFT_BYTES:
        raise CheckFailed(f"{left} bytes are in use after the model is gone")
    figures = {"model": model, "kv_cache": plan.kv_cache, "limit": plan.memory_limit}
    detail = f"model {format_bytes(model)}, limit {format_bytes(plan.memory_limit)}"
    return Finding(detail=detail, figures=figures | {"plan": plan.table()})


def _imagined(info: dict[str, Any]) -> _Needs:
    """A model of a tenth of the memory, which is never loaded."""
    total = info["total_memory"]
    sizes = dict(total=total, available=total, working_set=info["working_set"])
    sizes |= dict(model=total // 10, activations=1 << 20, block_bytes=1 << 20)
    return _Needs(4096, sizes)


def _wired_limit() -> Finding:
    """On a Mac the plan keeps less wired than the system recommends, and the system takes it."""
    from vllm_metal import _core

    info = _core.device_info()
    if info["backend"] != "metal":
        raise Skip("memory is wired by Metal only")
    plan = _imagined(info).plan(kv_cache_bytes=1 << 30)
    recommended = info["working_set"]
    if not 0 < plan.wired_limit <= 0.95 * recommended:
        raise CheckFailed(f"{plan.wired_limit} bytes would be wired, recommended: {recommended}")
    _core.apply_memory_limits(plan)
    _core.release_memory_limits()
    return Finding(figures={"wired_limit": plan.wired_limit, "recommended": recommended})


def _refusals() -> Finding:
    """What cannot be is refused with the option's name and figures."""
    from vllm_metal import _core

    info = _core.device_info()
    imagined = _imagined(info)
    for error_type, text, wishes in (
        (
            RuntimeError,
            "requires more memory than there is",
            {"kv_cache_bytes": 4 * info["total_memory"]},
        ),
        (RuntimeError, "--num-gpu-blocks-override", {"num_blocks": info["total_memory"]}),
        (ValueError, "--num-gpu-blocks-override must be at least", {"num_blocks": 0}),
        (ValueError, "--kv-cache-memory-bytes must be positive", {"kv_cache_bytes": 0}),
    ):
        try:
            plan = imagined.plan(**wishes)
        except (ValueError, RuntimeError) as error:
            if not isinstance(error, error_type) or text not in str(error):
                raise CheckFailed(f"{wishes} was refused with another error: {error}") from error
        else:
            raise CheckFailed(f"{wishes} was taken: {plan.table()}")
    return Finding()
