# SPDX-License-Identifier: Apache-2.0
"""The translation of steps, in both dialects that vLLM's scheduler speaks."""

import numpy as np
import pytest
from vllm.sampling_params import SamplingParams
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.outputs import LogprobsLists
from vllm_metal.torch_draw import TorchDraw

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def runner(fake_core):
    from vllm_metal import model_runner

    return model_runner


def new_request(request_id, prompt, *, num_computed_tokens=0, prefill=None, blocks=(1,)):
    return NewRequestData(
        req_id=request_id,
        prompt_token_ids=prompt,
        mm_features=[],
        sampling_params=GREEDY,
        pooling_params=None,
        block_ids=(list(blocks),),
        num_computed_tokens=num_computed_tokens,
        lora_request=None,
        prefill_token_ids=prefill,
    )


def cached_requests(num_computed_tokens, *, all_token_ids=None, resumed=(), blocks=None):
    """`num_computed_tokens` and new `blocks` by request id."""
    new_blocks = [(blocks or {}).get(request_id) for request_id in num_computed_tokens]
    return CachedRequestData(
        req_ids=list(num_computed_tokens),
        resumed_req_ids=set(resumed),
        new_token_ids=[],
        all_token_ids=all_token_ids or {},
        new_block_ids=[None if new is None else (new,) for new in new_blocks],
        num_computed_tokens=list(num_computed_tokens.values()),
        num_output_tokens=[1] * len(num_computed_tokens),
    )


def scheduler_output(
    num_scheduled_tokens, *, new=(), cached=None, finished=(), preempted=(), copies=None
):
    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = list(new)
    output.scheduled_cached_reqs = cached or cached_requests({})
    output.num_scheduled_tokens = num_scheduled_tokens
    output.total_num_scheduled_tokens = sum(num_scheduled_tokens.values())
    output.finished_req_ids = set(finished)
    output.preempted_req_ids = set(preempted)
    output.kv_cache_block_copies = copies
    return output


def test_new_and_running_requests_keep_the_order_of_the_schedule(runner, fake_core):
    step = scheduler_output(
        {"b": 1, "a": 3, "c": 2},
        new=[new_request("a", [5, 6, 7]), new_request("c", [8, 9, 10])],
        cached=cached_requests({"b": 11}),
        finished=["z"],
    )
    params = fake_core.SamplingParams(temperature=0.0)
    assert runner.step_arguments(step) == {
        "finished": ["z"],
        "preempted": [],
        "new_requests": [("a", [5, 6, 7], 0, params), ("c", [8, 9, 10], 0, params)],
        "sessions": [],
        "updates": [],
        "scheduled": [("b", 11, 1), ("a", 0, 3), ("c", 0, 2)],
    }


def test_preempted_requests_lose_their_cache(runner):
    step = runner.step_arguments(
        scheduler_output({"a": 1}, cached=cached_requests({"a": 4}), preempted=["b"])
    )
    assert (step["preempted"], step["finished"]) == (["b"], [])


def test_resumed_request_of_the_first_dialect(runner):
    """Among the cached ones, with all tokens. Others have tokens too, which the core knows."""
    step = runner.step_arguments(
        scheduler_output(
            {"a": 4, "b": 1},
            cached=cached_requests(
                {"a": 0, "b": 7},
                all_token_ids={"a": [1, 2, 3, 4], "b": [9] * 8},
                resumed=["a"],
            ),
        )
    )
    assert step["updates"] == [("a", [1, 2, 3, 4])]
    assert step["new_requests"] == []
    assert step["scheduled"] == [("a", 0, 4), ("b", 7, 1)]


def test_resumed_request_of_the_second_dialect(runner, fake_core):
    """A new one, which says with `prefill` what it generated before."""
    step = runner.step_arguments(
        scheduler_output({"a": 5}, new=[new_request("a", [1, 2], prefill=[1, 2, 3, 4, 5])])
    )
    params = fake_core.SamplingParams(temperature=0.0)
    assert step["new_requests"] == [("a", [1, 2, 3, 4, 5], 3, params)]


def test_more_input_for_a_session_keeps_what_is_computed(runner, fake_core):
    step = runner.step_arguments(
        scheduler_output({"a": 2}, new=[new_request("a", [1, 2, 3, 4, 5], num_computed_tokens=3)])
    )
    assert step["new_requests"] == []
    params = fake_core.SamplingParams(temperature=0.0)
    assert step["sessions"] == [("a", [1, 2, 3, 4, 5], 0, params)]
    assert step["updates"] == []
    assert step["scheduled"] == [("a", 3, 2)]


def test_blocks_are_those_of_new_requests_and_more_of_running_ones(runner):
    """Without the paged cache nobody hears of them."""
    step = scheduler_output(
        {"a": 20, "b": 1, "c": 1},
        new=[new_request("a", [5] * 20, blocks=[7, 3])],
        cached=cached_requests({"b": 16, "c": 4}, blocks={"b": [9]}),
    )
    arguments = runner.step_arguments(step, paged=True)
    assert arguments["blocks"] == [("a", [7, 3], True), ("b", [9], False)]
    assert arguments["block_copies"] == []
    assert not {"blocks", "block_copies"} & set(runner.step_arguments(step))


def test_a_hit_in_the_prefix_cache_is_a_new_request_with_computed_tokens(runner, fake_core):
    """It is none that keeps what it had, as a session of the MLX-managed cache."""
    request = new_request("a", [5] * 20, num_computed_tokens=16, blocks=[7, 3])
    step = runner.step_arguments(scheduler_output({"a": 4}, new=[request]), paged=True)
    params = fake_core.SamplingParams(temperature=0.0)
    assert step["new_requests"] == [("a", [5] * 20, 0, params)]
    assert step["sessions"] == []
    assert step["scheduled"] == [("a", 16, 4)]
    assert step["blocks"] == [("a", [7, 3], True)]


def test_blocks_of_resumed_requests_replace_theirs(runner):
    """In the first dialect; one that only runs on, or gets none, keeps its own."""
    cached = cached_requests(
        {"a": 16, "b": 31, "c": 8},
        all_token_ids={"a": [5] * 18},
        resumed=["a"],
        blocks={"a": [4, 8], "b": [2, 6]},
    )
    step = runner.step_arguments(scheduler_output({"a": 2, "b": 2, "c": 1}, cached=cached), True)
    assert step["updates"] == [("a", [5] * 18)]
    assert step["scheduled"] == [("a", 16, 2), ("b", 31, 2), ("c", 8, 1)]
    assert step["blocks"] == [("a", [4, 8], True), ("b", [2, 6], False)]


def test_blocks_of_a_resumed_request_of_the_second_dialect(runner, fake_core):
    request = new_request(
        "a", [1, 2], prefill=[1, 2, *range(3, 18)], num_computed_tokens=16, blocks=[5, 6]
    )
    step = runner.step_arguments(scheduler_output({"a": 1}, new=[request]), paged=True)
    params = fake_core.SamplingParams(temperature=0.0)
    assert step["new_requests"] == [("a", [1, 2, *range(3, 18)], 15, params)]
    assert step["blocks"] == [("a", [5, 6], True)]


def test_blocks_to_copy(runner):
    copies = [KVCacheBlockCopy(3, 4), KVCacheBlockCopy(3, 9)]
    step = scheduler_output({"a": 1}, cached=cached_requests({"a": 4}), copies=copies)
    assert runner.step_arguments(step, paged=True)["block_copies"] == [(3, 4), (3, 9)]


def test_output(runner, fake_core):
    logprobs = (np.zeros((1, 3), np.int32), np.ones((1, 3), np.float32), np.ones(1), [0, 0, 1, 1])
    output = runner.model_runner_output(
        ["a", "b", "c"],
        fake_core.StepOutput([[], [7], []], failed=[2], logprobs=logprobs),
        TorchDraw(),
    )
    assert output.req_ids == ["a", "b", "c"]
    assert output.req_id_to_index == {"a": 0, "b": 1, "c": 2}
    assert output.sampled_token_ids == [[], [7], []]
    assert output.num_nans_in_logits == {"c": 1}
    row = output.logprobs.slice_request(1, 1)
    assert row.logprobs.tolist() == [[1.0, 1.0, 1.0]]


def test_scores_of_prompts(runner, fake_core):
    most_likely = (
        np.array([[4, 6]], np.int32),
        np.array([[-1.5, -0.5]], np.float32),
        np.array([2], np.int32),
    )
    scores = np.array([[-3.0]], np.float32)
    prompts = [(1, most_likely, None), (0, None, scores)]
    output = runner.model_runner_output(
        ["a", "b"],
        fake_core.StepOutput([[7], [8]], failed=[], prompt_logprobs=prompts),
        TorchDraw(),
    )
    assert list(output.prompt_logprobs_dict) == ["b"]
    tensors = output.prompt_logprobs_dict["b"]
    assert tensors.logprob_token_ids.tolist() == [[4, 6]]
    assert tensors.logprobs.tolist() == [[-1.5, -0.5]]
    assert tensors.selected_token_ranks.tolist() == [2]
    assert output.prompt_token_id_logprobs_dict["a"].tolist() == [[-3.0]]


def test_a_failed_row_has_no_scores_of_its_prompt(runner, fake_core):
    """vLLM's scheduler asserts that a request without a token has none."""
    most_likely = (np.array([[4]]), np.array([[-1.5]], np.float32), np.array([2]))
    scores = np.array([[-3.0]], np.float32)
    prompts = [(0, most_likely, scores), (1, most_likely, scores), (2, most_likely, scores)]
    output = runner.model_runner_output(
        ["a", "b", "c"],
        fake_core.StepOutput([[], [7], [9]], failed=[0], prompt_logprobs=prompts),
        TorchDraw(failed=[2]),
    )
    assert list(output.prompt_logprobs_dict) == ["b"]
    assert list(output.prompt_token_id_logprobs_dict) == ["b"]
    assert set(output.num_nans_in_logits) == {"a", "c"}


def test_output_without_logprobs_and_failures(runner, fake_core):
    output = runner.model_runner_output(["a"], fake_core.StepOutput([[7]], failed=[]), TorchDraw())
    assert output.logprobs is None
    assert output.num_nans_in_logits is None


def test_output_of_rows_that_torch_drew(runner, fake_core):
    logprobs = (np.zeros((2, 3), np.int32), np.ones((2, 3), np.float32), np.ones(2), [0, 0, 1, 2])
    drawn = LogprobsLists(np.array([[7, 8]]), np.array([[-0.5, -1.5]]), np.array([4]))
    output = runner.model_runner_output(
        ["a", "b", "c"],
        fake_core.StepOutput([[], [7], [9]], failed=[], logprobs=logprobs),
        TorchDraw(given=[(1, 7)], failed=[2], rows=[0], logprobs=drawn),
    )
    assert output.sampled_token_ids == [[], [7], []]
    assert output.num_nans_in_logits == {"c": 1}
    row = output.logprobs.slice_request(1, 1)
    assert row.logprobs.tolist() == [[-0.5, -1.5, 1.0]]
    assert row.logprob_token_ids.tolist() == [[7, 8, 0]]
    assert row.sampled_token_ranks.tolist() == [4]
