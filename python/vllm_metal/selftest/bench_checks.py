# SPDX-License-Identifier: Apache-2.0
"""Our core and transformers on torch with the same model, for the report: nothing passes or fails.

The model has the shape of SmolLM2-135M and random numbers, so that nothing is fetched. Engines are
timed one after the other, each in a process of its own; torch in float32 and in bfloat16, of which
the better one is the peer. `benchmarks/bench_torch.py` measures with more care.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

from vllm_metal.selftest.checks import Check, Finding, Options, Skip
from vllm_metal.selftest.processes import output_of
from vllm_metal.selftest.tiny_models import TinyModel, write_model

_SECONDS = 600.0
_SHAPE: dict[str, Any] = dict(
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49152,
    tie_word_embeddings=True,
    dtype="bfloat16",
)
_QUICK = dict(num_hidden_layers=2, vocab_size=2048)
_TORCH_DTYPES = ("bfloat16", "float32")


def checks(options: Options) -> list[Check]:
    """Return the one comparison."""
    return [Check("bench/torch", lambda: _compare(options))]


def _compare(options: Options) -> Finding:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise Skip(f"{package} is not installed")
    shape = _SHAPE | (_QUICK if options.quick else {})
    tiny = TinyModel("bench", "LlamaForCausalLM", "llama", shape)
    model = write_model(tiny, Path(options.work))
    request = {
        "model": str(model),
        "prompt_tokens": 32 if options.quick else 128,
        "new_tokens": 9 if options.quick else 33,
        "runs": 1 if options.quick else 3,
    }
    dtypes = _TORCH_DTYPES[:1] if options.quick else _TORCH_DTYPES
    ours = _time(request | {"engine": "core", "dtype": "bfloat16"})
    theirs = {d: _time(request | {"engine": "torch", "dtype": d}) for d in dtypes}
    ratios = {
        phase: ours[phase] / max(one[phase] for one in theirs.values())
        for phase in ("prefill", "decode")
    }
    device = theirs[_TORCH_DTYPES[0]]["device"]
    detail = ", ".join(
        f"{phase} {ours[phase]:.0f} tokens/s, {ratio:.2f} of torch's on {device}"
        for phase, ratio in ratios.items()
    )
    return Finding(detail=detail, figures={"ours": ours, "torch": theirs, "ratios": ratios})


def _time(request: dict[str, Any]) -> dict[str, Any]:
    output = output_of("vllm_metal.selftest.engine", request, _SECONDS)
    return json.loads(output.splitlines()[-1])
