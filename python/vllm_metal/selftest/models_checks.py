# SPDX-License-Identifier: Apache-2.0
"""Tiny models of several architectures: on the GPU and with kernels as on the CPU without them.

A process of its own computes each model in each place, since the device is chosen once in a
process. What all are held against is the CPU in float32 with MLX's own ops.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vllm_metal.selftest.checks import NO_GPU, Check, CheckFailed, Finding, Options, Skip
from vllm_metal.selftest.processes import output_of
from vllm_metal.selftest.tiny_models import MODELS, TinyModel, read_tensors, write_model
from vllm_metal.selftest.traffic import MODES

# Largest error of logits relative to the largest logit, by the dtype that computes: also that of
# the tests of parity with transformers.
RELATIVE_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
_SECONDS = 240.0


@dataclass(frozen=True)
class Place:
    """Where models are computed."""

    name: str
    device: str  # of VLLM_MLX_DEVICE
    kernels: bool


CPU, REFERENCE = Place("cpu", "cpu", True), Place("reference", "cpu", False)
GPU_PLACES = (Place("gpu", "gpu", True), Place("gpu_fallback", "gpu", False))


def checks(options: Options) -> list[Check]:
    """Return a check for each place and model."""
    why_no_gpu = options.why_no_gpu or _why_no_gpu()
    models = Models(Path(options.work), MODELS[::2] if options.quick else MODELS)
    result = []
    for place in (CPU, *GPU_PLACES):
        if place in GPU_PLACES and why_no_gpu:
            result.append(Check(f"models/{place.name}", _skipped(why_no_gpu)))
            continue
        result += [
            Check(
                f"models/{place.name}/{model.name}", functools.partial(models.check, model, place)
            )
            for model in models.models
        ]
    return result


def _why_no_gpu() -> str | None:
    from vllm_metal import _core

    return NO_GPU if _core.device_info()["type"] == "cpu" else None


def _skipped(reason: str) -> Callable[[], Finding]:
    def skip() -> Finding:
        raise Skip(reason)

    return skip


class Models:
    """The models on disk and what the reference says of them, made when first asked for."""

    def __init__(self, work: Path, models: tuple[TinyModel, ...]) -> None:
        self.models = models
        self._work = work

    def check(self, model: TinyModel, place: Place) -> Finding:
        """Compare all dtypes and modes of the KV cache."""
        runs = [(dtype, mode) for dtype in RELATIVE_TOLERANCE for mode in MODES]
        expected = self._reference(model)
        actual = compute(self._directory(model), place, runs, self._work)
        return compare(actual, expected)

    @functools.cache  # noqa: B019 - lives as long as the process
    def _directory(self, model: TinyModel) -> Path:
        folder = self._work / f"models-{os.getpid()}"
        return write_model(model, folder)

    @functools.cache  # noqa: B019
    def _reference(self, model: TinyModel) -> np.ndarray:
        logits = compute(self._directory(model), REFERENCE, [("float32", "managed")], self._work)
        return logits["float32/managed"]


def compare(actual: dict[str, np.ndarray], expected: np.ndarray) -> Finding:
    """Return the error that is largest in relation to the tolerance of its dtype."""
    errors = {}
    for run, logits in actual.items():
        if logits.shape != expected.shape:
            raise CheckFailed(f"logits of {run} are {logits.shape}, expected {expected.shape}")
        errors[run] = float(np.abs(logits - expected).max() / np.abs(expected).max())
    # NaN is larger than any error here.
    ratios = {run: error / RELATIVE_TOLERANCE[run.split("/")[0]] for run, error in errors.items()}
    worst = max(ratios, key=lambda run: np.nan_to_num(ratios[run], nan=np.inf))
    return Finding(ratios[worst], 1.0, f"worst in {worst}", {"relative_errors": errors})


def compute(
    model: Path, place: Place, runs: list[tuple[str, str]], work: Path
) -> dict[str, np.ndarray]:
    """Return logits by dtype/mode. CheckFailed tells how the process that computes them ended."""
    file = work / f"{model.name}-{place.name}-{os.getpid()}.safetensors"
    request = {"model": str(model), "kernels": place.kernels, "runs": runs, "file": str(file)}
    variables = {"VLLM_MLX_DEVICE": place.device}
    try:
        output_of("vllm_metal.selftest.traffic", request, _SECONDS, variables)
    except CheckFailed as failure:
        raise CheckFailed(f"{place.name}: {failure}") from failure
    return read_tensors(file)
