# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampling parameters, for the core; and those that the core cannot do yet."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from vllm_metal import _core

# Parameters that must keep their neutral value, with what they are called elsewhere. The others
# of vLLM's SamplingParams are the core's (`to_core`) or act in vLLM itself: stop strings and
# ids, max_tokens, ignore_eos, n, detokenisation, repetition detection.
UNSUPPORTED: dict[str, str] = {
    "presence_penalty": "",
    "frequency_penalty": "",
    "repetition_penalty": "",
    "min_p": "",
    "min_tokens": "",
    "prompt_logprobs": " (echo with logprobs)",
    "prompt_logprob_token_ids": "",
    "logprob_token_ids": "",
    "logit_bias": "",
    "allowed_token_ids": "",
    "bad_words": "",
    "structured_outputs": " (response_format, required or named tools)",
    "thinking_token_budget": "",
    "trace_decode_token_ids": "",
    "extra_args": " (vllm_xargs)",
}

_NEUTRAL = SamplingParams()
_MAX_INT32 = 2**31 - 1


def refuse_unsupported(params: SamplingParams) -> None:
    """Raise the error that vLLM answers with HTTP 400 when the core cannot obey `params`."""
    for name, also_known_as in UNSUPPORTED.items():
        value = getattr(params, name, None)
        if not _is_neutral(name, value):
            raise VLLMValidationError(
                f"{name}{also_known_as} is not supported by vLLM Metal yet; leave it out.",
                parameter=name,
            )
    if params.seed is not None and not -(2**63) <= params.seed < 2**63:
        raise VLLMValidationError(
            f"seed must fit in 64 bits with a sign, got {params.seed}.", parameter="seed"
        )


def unsupported_defaults(defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Pick the entries of a model's default sampling parameters that the core cannot obey."""
    for name, value in defaults.items():
        if name in UNSUPPORTED and not _is_neutral(name, value):
            yield name, value


def to_core(params: SamplingParams) -> "_core.SamplingParams":
    """Translate what the core draws tokens by."""
    from vllm_metal import _core

    return _core.SamplingParams(
        temperature=float(params.temperature),
        top_p=float(params.top_p),
        top_k=min(params.top_k, _MAX_INT32),  # any integer is legal in vLLM
        seed=params.seed,
        num_logprobs=params.logprobs,
    )


def _is_neutral(name: str, value: Any) -> bool:
    if value is None or (isinstance(value, (list, dict)) and not value):
        return True
    return isinstance(value, (int, float)) and value == getattr(_NEUTRAL, name)
