# SPDX-License-Identifier: Apache-2.0
"""What is done when the system runs short of memory, with a probe that says so."""

import queue
import random
import time
from http import HTTPStatus
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.exceptions import QueueOverflowError
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm_metal.memory_pressure import MemoryWatch, Relief, _take_last, process_watch

from tests.plugin import fake_core as model
from tests.plugin.conftest import one_engine_at_a_time
from tests.plugin.streaming_session import Session

NUM_REQUESTS = 12


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def stages(pressures, seconds_between_looks=1.0):
    """Return the stage after each look."""
    clock, upcoming = Clock(), iter(pressures)
    watch = MemoryWatch(lambda: next(upcoming), clock)
    found = []
    for _ in pressures:
        watch.look()
        found.append(watch.stage)
        clock.seconds += seconds_between_looks
    return found


class TestWatch:
    def test_stages_follow_each_other_while_it_is_critical(self):
        assert stages(["normal", *["critical"] * 9]) == [0, 1, 1, 2, 2, 3, 3, 3, 3, 3]

    def test_each_stage_gets_its_time(self):
        assert stages(["critical"] * 9, seconds_between_looks=0.5) == [1, 1, 1, 1, 2, 2, 2, 2, 3]

    def test_a_warning_keeps_the_stage(self):
        assert stages(["warning", "critical", *["warning"] * 5, "critical"]) == [0, *[1] * 6, 2]

    def test_normal_pressure_ends_all(self):
        assert stages(["critical"] * 7 + ["normal", "critical"]) == [1, 1, 2, 2, 3, 3, 3, 0, 1]


@pytest.fixture(scope="module")
def make_engine(fake_core, tiny_llama):
    with one_engine_at_a_time(tiny_llama) as make:
        yield make


@pytest.fixture(scope="module")
def engine(make_engine):
    return make_engine(max_num_seqs=16, max_model_len=256, num_gpu_blocks_override=200)


@pytest.fixture
def press(monkeypatch):
    """Set what the probe says; returns when the watch of this process has taken note.

    Its clock stands still otherwise, so that no stage ends by itself.
    """
    watch, clock = process_watch(), Clock()
    clock.seconds += time.monotonic()
    monkeypatch.setattr(watch, "_clock", clock)

    def set_pressure(pressure, stage):
        monkeypatch.setattr(watch, "_probe", lambda: pressure)
        watch.look()
        while watch.stage != stage:
            assert watch.stage < stage
            clock.seconds += 2
            watch.look()

    yield set_pressure
    set_pressure("normal", Relief.NONE)


def test_what_is_least_urgent_waits_first():
    requests = [
        SimpleNamespace(name=name, priority=priority, arrival_time=arrival)
        for name, priority, arrival in (("late", 1, 9), ("urgent", 0, 10), ("early", 1, 8))
    ]
    for policy, names in (
        (SchedulingPolicy.PRIORITY, ["late", "early", "urgent"]),
        (SchedulingPolicy.FCFS, ["early", "urgent", "late"]),
    ):
        scheduler = SimpleNamespace(policy=policy, running=requests.copy())
        assert [_take_last(scheduler).name for _ in requests] == names
        assert scheduler.running == []


def scheduler_of(engine):
    return engine.llm_engine.engine_core.engine_core.scheduler


def test_requests_wait_and_are_answered_all_the_same(engine, press):
    generator = random.Random(3)
    prompts = [[generator.randrange(3, 60) for _ in range(20)] for _ in range(NUM_REQUESTS)]
    params = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
    core, scheduler = engine.llm_engine, scheduler_of(engine)
    before = scheduler.max_num_active_reqs
    for index, prompt in enumerate(prompts):
        core.add_request(str(index), {"prompt_token_ids": prompt}, params)
    finished = {}

    def step(times=1):
        for _ in range(times):
            for output in core.step():
                if output.finished:
                    finished[int(output.request_id.split("-")[0])] = output

    step(3)
    assert len(scheduler.running) == NUM_REQUESTS
    for stage, num_running in (
        (Relief.PREEMPT, 6),
        (Relief.DROP_PREFIX_CACHE, 3),
        (Relief.REFUSE, 1),
    ):
        press("critical", stage)
        times_returned = len(model.memory_returned)
        step(3)
        assert len(model.memory_returned) == times_returned + 1
        assert len(scheduler.running) == num_running
        assert len(scheduler.waiting) == NUM_REQUESTS - num_running
    press("normal", Relief.NONE)
    step(3)
    assert len(scheduler.running) == NUM_REQUESTS
    assert scheduler.max_num_active_reqs == before
    while core.has_unfinished_requests():
        step()
    for index, prompt in enumerate(prompts):
        tokens = list(finished[index].outputs[0].token_ids)
        assert tokens == model.generate(prompt, 100), index


def test_a_session_that_waits_for_its_client_blocks_nobody(engine, press):
    params = SamplingParams(
        temperature=0.0, max_tokens=3, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    session = Session(engine, "session", params)
    session.send([5, 6, 7])
    session.listen(3)
    scheduler = scheduler_of(engine)
    assert scheduler.num_waiting_for_streaming_input == 1
    press("critical", Relief.PREEMPT)
    core = engine.llm_engine
    core.add_request("other", {"prompt_token_ids": [8, 9]}, params.clone())
    outputs = [output for _ in range(20) for output in core.step()]
    assert any(output.finished for output in outputs if output.request_id.startswith("other"))
    assert scheduler.max_num_active_reqs == 2
    session.send([3], last=True)
    while core.has_unfinished_requests():
        core.step()


def test_new_requests_are_refused_last(engine, press):
    server = AsyncLLM.__new__(AsyncLLM)  # a server without limits of its own
    server.scheduler_config = engine.llm_engine.vllm_config.scheduler_config
    press("critical", Relief.DROP_PREFIX_CACHE)
    server.check_admission()
    press("critical", Relief.REFUSE)
    with pytest.raises(QueueOverflowError) as raised:
        server.check_admission()
    assert raised.value.http_status == HTTPStatus.SERVICE_UNAVAILABLE
    press("normal", Relief.NONE)
    server.check_admission()


@pytest.fixture(scope="module")
def prefix_engine(make_engine):
    """Make an engine with a prefix cache; the one before is gone then."""
    return make_engine(max_model_len=256, num_gpu_blocks_override=200, enable_prefix_caching=True)


def test_the_prefix_cache_is_emptied_and_stays_empty(prefix_engine, press):
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)

    def num_cached_tokens():
        prompt = {"prompt_token_ids": [5, 6, 7] * 12}
        (output,) = prefix_engine.generate([prompt], params, use_tqdm=False)
        return output.num_cached_tokens

    assert [num_cached_tokens() for _ in range(2)] == [0, 32]
    press("critical", Relief.PREEMPT)
    assert num_cached_tokens() == 32
    press("critical", Relief.DROP_PREFIX_CACHE)
    assert [num_cached_tokens() for _ in range(2)] == [0, 0]
    assert model.ModelRunner.instances[-1].prefix_cache.blocks == {}
    press("normal", Relief.NONE)
    assert [num_cached_tokens() for _ in range(2)] == [0, 32]


def test_an_engine_without_requests_wakes_up_and_frees_its_cache(prefix_engine, press, monkeypatch):
    process = EngineCoreProc.__new__(EngineCoreProc)
    process.__dict__ |= prefix_engine.llm_engine.engine_core.engine_core.__dict__
    process.input_queue = queue.Queue()
    process.engines_running = False
    monkeypatch.setattr(process, "_handle_shutdown", lambda: False)
    with pytest.raises(SystemExit):
        process.run_busy_loop()
    runner = model.ModelRunner.instances[-1]
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    prefix_engine.generate([{"prompt_token_ids": [5, 6, 7] * 12}], params, use_tqdm=False)
    assert runner.prefix_cache.blocks
    while process.has_work():  # those that ended are told of in one more step
        process.step_fn()
    for stage, calls in ((Relief.PREEMPT, []), (Relief.DROP_PREFIX_CACHE, ["kv_cache"])):
        runner.memory_calls.clear()
        press("critical", stage)
        process._handle_client_request(*process.input_queue.get(timeout=20))
        assert runner.memory_calls == calls
    press("normal", Relief.NONE)
    assert process.input_queue.get(timeout=20) == (EngineCoreRequestType.WAKEUP, None)
