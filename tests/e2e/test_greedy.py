# SPDX-License-Identifier: Apache-2.0
"""64 greedy tokens of the real model, as transformers says them."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.prompts import NUM_TOKENS, PROMPTS

every_prompt = pytest.mark.parametrize("prompt", PROMPTS, ids=str)

# float16 keeps 11 bits and 30 layers round: steps of the reference whose two best logits differ
# by less than this share of the largest are not decided.
FLOAT16_RESOLUTION = 2.0**-8


def ask(server, reference, prompt):
    """Return the tokens that the server says, through the API that fits the prompt."""
    client, options = server.client(), {"ignore_eos": True, "return_token_ids": True}
    expected_prompt = prompt.token_ids(reference)
    if prompt.messages:
        response = client.chat.completions.create(
            model=server.name,
            messages=prompt.chat(),
            max_tokens=NUM_TOKENS,
            temperature=0.0,
            extra_body=options,
        )
        assert response.prompt_token_ids == expected_prompt
        return response.choices[0].token_ids
    response = client.completions.create(
        model=server.name,
        prompt=expected_prompt,
        max_tokens=NUM_TOKENS,
        temperature=0.0,
        extra_body=options,
    )
    return response.choices[0].token_ids


@every_prompt
def test_alone(server, reference, prompt):
    answer = ask(server, reference, prompt)
    assert len(answer) == NUM_TOKENS
    assert answer == reference.choices(prompt.token_ids(reference), answer).token_ids


def test_eight_at_once(server, reference):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: ask(server, reference, prompt), PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert len(answer) == NUM_TOKENS
        expected = reference.choices(prompt.token_ids(reference), answer).token_ids
        assert answer == expected, prompt


@pytest.fixture(scope="module")
def default_dtype_engine(default_model, mode_variables):
    from vllm import LLM

    with pytest.MonkeyPatch.context() as patch:
        for name, value in mode_variables.items():
            patch.setenv(name, value)
        engine = LLM(str(default_model), max_model_len=2048, kv_cache_memory_bytes=1 << 30)
        yield engine
        engine.llm_engine.engine_core.shutdown()


@every_prompt
def test_default_dtype_where_a_step_is_decided(default_dtype_engine, reference, prompt):
    import torch
    from vllm import SamplingParams

    assert default_dtype_engine.llm_engine.model_config.dtype == torch.float16
    tokens = prompt.token_ids(reference)
    (output,) = default_dtype_engine.generate(
        [{"prompt_token_ids": tokens}],
        SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True),
        use_tqdm=False,
    )
    answer = list(output.outputs[0].token_ids)
    choices = reference.choices(tokens, answer)
    assert len(answer) == NUM_TOKENS
    decided = [
        step
        for step in range(NUM_TOKENS)
        if choices.margins[step] >= FLOAT16_RESOLUTION * choices.scales[step]
    ]
    assert len(decided) > NUM_TOKENS // 2
    for step in decided:  # after whatever the answer had before
        assert answer[step] == choices.token_ids[step], step
