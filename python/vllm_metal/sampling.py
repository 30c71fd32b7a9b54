# SPDX-License-Identifier: Apache-2.0
"""vLLM's sampling parameters, for the core; and those that the core cannot do yet."""

from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams

if TYPE_CHECKING:
    from vllm_metal import _core

# Parameters that must stay unset. The others of vLLM's SamplingParams are the core's (`to_core`),
# custom logits processors' (extra_args), or act in vLLM itself: stop strings and ids, max_tokens,
# ignore_eos, n, detokenisation, repetition detection.
UNSUPPORTED = ("trace_decode_token_ids",)

_MAX_INT32 = 2**31 - 1
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_MIN_FLOAT32 = float(np.finfo(np.float32).tiny)  # above zero, without losing digits


def refuse_unsupported(params: SamplingParams) -> None:
    """Raise the error that vLLM answers with HTTP 400 when the core cannot obey `params`."""
    for name in UNSUPPORTED:
        if getattr(params, name, None):
            raise VLLMValidationError(
                f"{name} is not supported by vLLM Metal; leave it out.", parameter=name
            )
    if params.seed is not None and not -(2**63) <= params.seed < 2**63:
        raise VLLMValidationError(
            f"seed must fit in 64 bits with a sign, got {params.seed}.", parameter="seed"
        )
    try:
        to_core(params)
    except ValueError as error:  # in a step it would end the engine
        raise VLLMValidationError(str(error)) from error


def refuse_unknown_tokens(prompt: list[int], params: SamplingParams, vocab_size: int) -> None:
    """Raise it for ids that the model has no embedding or logit for.

    vLLM lets those pass that the tokenizer knows, and tokenizers may know more than models.
    """
    scored = params.prompt_logprob_token_ids  # -1: no token
    named = {
        "prompt": (prompt, 0),
        "logprob_token_ids": (params.logprob_token_ids or [], 0),
        "prompt_logprob_token_ids": (_flat(scored), -1),
    }
    for parameter, (token_ids, lowest) in named.items():
        for token_id in (min(token_ids), max(token_ids)) if token_ids else ():
            if not lowest <= token_id < vocab_size:
                raise VLLMValidationError(
                    f"Token id {token_id} is out of vocabulary: the model has {vocab_size} tokens.",
                    parameter=parameter,
                )


def to_core(params: SamplingParams) -> "_core.SamplingParams":
    """Translate what the core draws tokens by."""
    from vllm_metal import _core

    return _core.SamplingParams(
        temperature=_float32(params.temperature),
        top_p=_float32(params.top_p, lowest=_MIN_FLOAT32),
        top_k=min(params.top_k, _MAX_INT32),  # any integer is legal in vLLM
        min_p=float(params.min_p),
        seed=params.seed,
        presence_penalty=float(params.presence_penalty),
        frequency_penalty=float(params.frequency_penalty),
        repetition_penalty=_float32(params.repetition_penalty, lowest=_MIN_FLOAT32),
        logit_bias=list((params.logit_bias or {}).items()),
        allowed_token_ids=params.allowed_token_ids or None,
        bad_words_token_ids=params.bad_words_token_ids or [],
        min_tokens=min(params.min_tokens, _MAX_INT32),
        all_stop_token_ids=sorted(params.all_stop_token_ids),
        has_grammar=params.structured_outputs is not None,
        thinking_token_budget=_at_most_int32(params.thinking_token_budget),
        num_logprobs=params.logprobs,
        logprob_token_ids=params.logprob_token_ids or [],
        num_prompt_logprobs=params.prompt_logprobs,
        **_prompt_scores(params),
    )


def _prompt_scores(params: SamplingParams) -> dict[str, Any]:
    if params.prompt_logprob_token_ids is None:
        return {}
    token_ids = np.asarray(params.prompt_logprob_token_ids)  # a list until it has been sent
    return {
        "prompt_logprob_token_ids": token_ids.ravel().tolist(),
        "prompt_logprob_ids_per_row": token_ids.shape[1],
        "prompt_logprob_start": min(params.prompt_logprob_start or 0, _MAX_INT32),
    }


def _flat(token_ids: Any) -> list[int]:
    return [] if token_ids is None else np.asarray(token_ids).ravel().tolist()


def _float32(value: float, lowest: float = 0.0) -> float:
    """Return what is nearest in float32, in which the core computes; NaN stays."""
    return min(max(float(value), lowest), _MAX_FLOAT32)


def _at_most_int32(value: int | None) -> int | None:
    return None if value is None else min(value, _MAX_INT32)
