# SPDX-License-Identifier: Apache-2.0
import pytest
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm_metal import sampling

CORE = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "_bad_words_token_ids",
    "min_tokens",
    "_all_stop_token_ids",
    "structured_outputs",
    "thinking_token_budget",
    "logprobs",
    "logprob_token_ids",
    "prompt_logprobs",
    "prompt_logprob_token_ids",
    "prompt_logprob_start",
}

# What vLLM's engine and front end do by themselves.
VLLM = {
    "n",
    "watermarking",  # refused with --watermark-config
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "max_tokens",
    "flat_logprobs",
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "output_kind",
    "stream_interval",
    "skip_clone",
    "output_text_buffer_length",
    "_eos_token_id",
    "_watermarking_skipped",
    "skip_reading_prefix_cache",
    "repetition_detection",
    "routed_experts_prompt_start",  # refused with --enable-return-routed-experts
    "extra_args",  # for custom logits processors
}

UNSUPPORTED = {"trace_decode_token_ids": [1]}


def test_every_parameter_of_vllm_has_its_place():
    """A new vLLM with a new parameter fails here."""
    known = CORE | VLLM | set(sampling.UNSUPPORTED)
    assert set(SamplingParams.__struct_fields__) == known
    assert not CORE & VLLM
    assert set(UNSUPPORTED) == set(sampling.UNSUPPORTED)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_parameter_is_refused_by_name(name):
    params = SamplingParams(max_tokens=8, **{name: UNSUPPORTED[name]})
    with pytest.raises(VLLMValidationError, match=f"^{name}.* is not supported") as error:
        sampling.refuse_unsupported(params)
    assert error.value.parameter == name


def test_neutral_values_pass():
    sampling.refuse_unsupported(SamplingParams())
    sampling.refuse_unsupported(
        SamplingParams(
            n=2,
            temperature=0.7,
            top_p=0.9,
            top_k=40,
            seed=-(2**63),
            logprobs=-1,
            presence_penalty=0.0,
            repetition_penalty=1,
            min_p=0,
            min_tokens=0,
            logit_bias={},
            bad_words=[],
            extra_args={},
            stop=["w9"],
            stop_token_ids=[5],
            ignore_eos=True,
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.DELTA,
        )
    )


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_seed_must_fit_in_64_bits(seed):
    with pytest.raises(VLLMValidationError, match="seed must fit"):
        sampling.refuse_unsupported(SamplingParams(seed=seed))


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_p": 1e-50},
        {"repetition_penalty": 1e39},
        {"repetition_penalty": 1e-46},
        {"min_p": 1e-50},
    ],
)
def test_numbers_that_float32_does_not_have_become_the_nearest(parameters):
    params = SamplingParams(**{"temperature": 1.0} | parameters)
    sampling.refuse_unsupported(params)  # by the core's own checks


def test_what_the_core_refuses_is_an_error_of_the_request():
    with pytest.raises(VLLMValidationError, match="logit_bias must be a number below infinity"):
        sampling.refuse_unsupported(SamplingParams(logit_bias={3: float("inf")}))


@pytest.mark.parametrize("token_id", [-2, 100])
@pytest.mark.parametrize("parameter", ["prompt", "logprob_token_ids", "prompt_logprob_token_ids"])
def test_tokens_that_the_model_does_not_have_are_refused(parameter, token_id):
    prompt, params = [5, 99], SamplingParams()
    sampling.refuse_unknown_tokens(prompt, params, 100)
    if parameter == "prompt":
        prompt = [5, token_id, 7]
    elif parameter == "logprob_token_ids":
        params.logprob_token_ids = [0, token_id]
    else:
        params.prompt_logprob_token_ids = [[1, -1], [token_id, 3]]
    with pytest.raises(VLLMValidationError, match=f"Token id {token_id} is out of") as error:
        sampling.refuse_unknown_tokens(prompt, params, 100)
    assert error.value.parameter == parameter


def test_translation(fake_core):
    params = SamplingParams(
        temperature=1,
        top_p=0.25,
        top_k=9,
        min_p=0.5,
        seed=12,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias={7: 1.5},
        allowed_token_ids=[4, 7],
        min_tokens=3,
        stop_token_ids=[9, 5],
        structured_outputs=StructuredOutputsParams(regex="a+"),
        thinking_token_budget=0,
        logprobs=3,
        logprob_token_ids=[1, 2],
        prompt_logprobs=-1,
        prompt_logprob_token_ids=[[1, 2], [3, -1]],
        prompt_logprob_start=1,
    )
    params._bad_words_token_ids = [[5, 6]]
    assert sampling.to_core(params) == fake_core.SamplingParams(
        temperature=1.0,
        top_p=0.25,
        top_k=9,
        min_p=0.5,
        seed=12,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        logit_bias=[(7, 1.5)],
        allowed_token_ids=[4, 7],
        bad_words_token_ids=[[5, 6]],
        min_tokens=3,
        all_stop_token_ids=[5, 9],
        has_grammar=True,
        thinking_token_budget=0,
        num_logprobs=3,
        logprob_token_ids=[1, 2],
        num_prompt_logprobs=-1,
        prompt_logprob_token_ids=[1, 2, 3, -1],
        prompt_logprob_ids_per_row=2,
        prompt_logprob_start=1,
    )
    assert sampling.to_core(SamplingParams()) == fake_core.SamplingParams()


def test_a_top_k_beyond_32_bits_keeps_all_tokens(fake_core):
    assert sampling.to_core(SamplingParams(top_k=10**12)).top_k == 2**31 - 1
