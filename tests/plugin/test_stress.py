# SPDX-License-Identifier: Apache-2.0
"""vLLM's engine on the real core with too little memory: answers are those of requests alone."""

import itertools
import random

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from tests.plugin.conftest import one_engine_at_a_time
from tests.plugin.step_watch import StepWatch
from tests.plugin.streaming_session import Session
from tests.plugin.tiny_model import EOS, VOCAB_SIZE

# 39 blocks (block 0 is vLLM's own) of 16 tokens, for 120 requests of up to 210 tokens.
SMALL_CACHE = {
    "num_gpu_blocks_override": 40,
    "max_num_batched_tokens": 64,
    "max_num_seqs": 16,
    "disable_log_stats": False,  # preemptions are counted there
    "enable_sleep_mode": True,
}
ENGINE = {"dtype": "float32", "max_model_len": 256, "max_logprobs": -1}
NUM_REQUESTS = 120
FIRST_WORD = 3
# Tokens are compared exactly. Products round by the number of rows computed together.
LOGPROB_TOLERANCE = 2e-6

# What the requests ask for besides length; None is the greedy request without anything else.
KINDS = (
    {"temperature": 0.0},
    {"seed": 1},
    {"temperature": 0.0, "presence_penalty": 1.5, "frequency_penalty": 0.7, "logprobs": 2},
    {"temperature": 0.8, "seed": 2, "top_p": 0.7, "repetition_penalty": 1.3},
    {"temperature": 0.0, "prompt_logprobs": 2},
    {"seed": 3, "top_k": 20, "min_p": 0.02, "logprobs": -1},
    {"temperature": 0.0, "logit_bias": {7: 4.0, 9: -100.0}, "bad_words": ["w8 w9", "w11"]},
    {"seed": 4, "allowed_token_ids": [*range(FIRST_WORD, 40), EOS], "min_tokens": 5},
    {"seed": 5, "structured_outputs": StructuredOutputsParams(regex="(w5|w6|w77){9,40}w8")},
    {"temperature": 1.5, "seed": 6, "logprobs": 0, "stop_token_ids": [20, 21, 22]},
)


def requests(number=NUM_REQUESTS):
    """Make prompts of 1 to 150 tokens with parameters of every kind; some begin alike."""
    generator = random.Random(7)
    prefixes = {
        length: [generator.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(length)]
        for length in (20, 48, 70)
    }
    made = []
    for index in range(number):
        length = generator.randrange(1, 150)
        prompt = [generator.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(length)]
        if index % 7 in (1, 2, 4):
            prefix = prefixes[(20, 48, 70)[index // 7 % 3]]
            prompt[: len(prefix)] = prefix
        kind = KINDS[index % len(KINDS)]
        options = {"max_tokens": generator.randrange(1, 60)}
        options["ignore_eos"] = index % 3 > 0 and "structured_outputs" not in kind
        options["max_tokens"] = max(options["max_tokens"], kind.get("min_tokens", 1))
        made.append((prompt, SamplingParams(**options | kind)))
    return made


def generate(llm, asked):
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in asked]
    params = [params for _, params in asked]
    return llm.generate(prompts, params, use_tqdm=False)


def check(output, expected, what):
    """Compare all that is told of a request with what it is told alone."""
    for answer, other in zip(output.outputs, expected.outputs, strict=True):
        found = (list(answer.token_ids), answer.finish_reason, answer.stop_reason, answer.text)
        assert found == (
            list(other.token_ids),
            other.finish_reason,
            other.stop_reason,
            other.text,
        ), what
        check_logprobs(answer.logprobs, other.logprobs, what)
    check_logprobs(output.prompt_logprobs, expected.prompt_logprobs, what)


def check_logprobs(found, expected, what):
    assert (found is None) == (expected is None), what
    for position, other in zip(found or (), expected or (), strict=True):
        assert (position is None) == (other is None), what
        for (token, entry), (other_token, other_entry) in zip(
            (position or {}).items(), (other or {}).items(), strict=True
        ):
            assert (token, entry.rank) == (other_token, other_entry.rank), what
            assert entry.logprob == pytest.approx(other_entry.logprob, abs=LOGPROB_TOLERANCE), what


def counter(llm, name):
    return sum(metric.value for metric in llm.get_metrics() if metric.name == f"vllm:{name}")


@pytest.fixture(scope="module")
def make_engine(tiny_llama):
    """Make engines, one at a time alive."""
    with one_engine_at_a_time(tiny_llama, **ENGINE) as make:
        yield make


@pytest.fixture(scope="module")
def alone(make_engine):
    """Return what each request is told alone, one after the other, with room for all."""
    llm = make_engine(max_num_seqs=1, async_scheduling=False, kv_cache_memory_bytes=1 << 22)
    return generate(llm, requests())


# The MLX-managed KV cache without and with its prefix cache, and the paged one.
MODES = ("managed", "prefix-cache", "paged")
NUM_PREFIX_CACHE_BLOCKS = 60


def name_of(case):
    mode, async_scheduling, second_dialect = case
    return "-".join(
        (mode, "async" if async_scheduling else "sync", "v2" if second_dialect else "v1")
    )


@pytest.fixture(
    scope="module", params=itertools.product(MODES, (False, True), (False, True)), ids=name_of
)
def case(request):
    """The mode, whether scheduling is asynchronous, whether the dialect is the second."""
    return request.param


@pytest.fixture(scope="module")
def mode(case):
    return case[0]


def set_mode(patch, mode):
    """Set the mode of engines to come; a prefix cache is small."""
    from vllm_metal.worker import MetalWorker

    plan = MetalWorker.determine_available_memory

    def plan_few_blocks(worker):
        num_bytes = plan(worker)
        worker._num_prefix_cache_blocks = NUM_PREFIX_CACHE_BLOCKS
        return num_bytes

    patch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", str(int(mode == "paged")))
    if mode == "prefix-cache":
        patch.setenv("VLLM_METAL_PREFIX_CACHE", "1")
        patch.setattr(MetalWorker, "determine_available_memory", plan_few_blocks)


@pytest.fixture(scope="module")
def small_engine(case, alone, make_engine):
    """Make an engine with few blocks, for both dialects of vLLM's scheduler."""
    import vllm.config.vllm

    mode, async_scheduling, second_dialect = case
    with pytest.MonkeyPatch.context() as patch:
        set_mode(patch, mode)
        # Scheduler and front end take the second dialect where Triton has a driver.
        patch.setattr(vllm.config.vllm, "HAS_TRITON", second_dialect)
        llm = make_engine(**SMALL_CACHE, async_scheduling=async_scheduling)
        config = llm.llm_engine.vllm_config
        assert config.use_v2_model_runner == second_dialect
        assert config.scheduler_config.async_scheduling == async_scheduling
        assert config.cache_config.enable_prefix_caching == (mode == "paged")
        yield llm


@pytest.fixture(scope="module")
def watch(mode, small_engine):
    """Watch the steps of a paged cache; None for the other."""
    return StepWatch(small_engine) if mode == "paged" else None


@pytest.fixture(autouse=True)
def all_blocks_come_back(watch, small_engine):
    blocks = free_blocks(small_engine)
    yield
    assert free_blocks(small_engine) == blocks == SMALL_CACHE["num_gpu_blocks_override"] - 1


def test_every_answer_is_the_one_alone(small_engine, alone, watch, mode):
    names = ("num_preemptions", "external_prefix_cache_hits")
    before = [counter(small_engine, name) for name in names]
    outputs = generate(small_engine, requests())
    num_preemptions, num_hits = (
        counter(small_engine, name) - value for name, value in zip(names, before, strict=True)
    )
    assert num_preemptions > 20
    assert (num_hits > 500) == (mode == "prefix-cache")
    for index, (output, expected) in enumerate(zip(outputs, alone, strict=True)):
        check(output, expected, f"request {index}")
    if watch is not None:
        assert watch.num_tables > 1000
        assert watch.hits.new > 20
        assert watch.hits.resumed > 5


def test_cached_tokens(small_engine, mode):
    """They are whole blocks, and not all of a prompt: its last token is always computed."""
    generator = random.Random(12)
    prompt = [generator.randrange(FIRST_WORD, VOCAB_SIZE) for _ in range(50)]
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    small_engine.reset_prefix_cache()
    kind = "external_prefix_cache" if mode == "prefix-cache" else "prefix_cache"
    names = (f"{kind}_queries", f"{kind}_hits")
    before = [counter(small_engine, name) for name in names]
    # Both at once: the second uses blocks that the same step computes, if requests share them.
    outputs = generate(small_engine, [(prompt, params)] * 2)
    answer = list(outputs[0].outputs[0].token_ids)
    asked = [prompt[:48], prompt[:33], [*prompt, *answer], [*prompt, *answer[:15]], prompt[:9]]
    outputs += [generate(small_engine, [(other, params)])[0] for other in [*asked, answer]]
    # Of the answer's 20 tokens the first 19 were computed after the prompt.
    expected = [0, 48 if mode == "paged" else 0, 32, 32, 64, 64, 0, 0]
    if mode == "managed":
        expected = [0] * 8
    assert [output.num_cached_tokens for output in outputs] == expected
    num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    num_queries = 0 if mode == "managed" else num_tokens
    counted = [counter(small_engine, name) for name in names]
    assert [now - then for now, then in zip(counted, before, strict=True)] == [
        num_queries,
        sum(expected),
    ]


def test_nothing_is_cached_after_a_sleep(small_engine):
    """The blocks' memory was given back, so that no prefix lies in them any more."""
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    asked = [([5, 6, 7] * 30, params)]
    (before,) = generate(small_engine, asked)
    small_engine.sleep(level=1)
    small_engine.wake_up()
    (after,) = generate(small_engine, asked)
    assert after.num_cached_tokens == 0
    assert after.outputs[0].token_ids == before.outputs[0].token_ids


def step_until(engine, done, limit=3000):
    """Step an engine, collecting finished outputs by request id, until `done(finished)`."""
    finished = {}
    for _ in range(limit):
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
        if done(finished):
            return finished
    raise AssertionError(f"not done after {limit} steps")


def free_blocks(llm):
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def test_aborts_and_request_ids_used_again(small_engine, alone, monkeypatch):
    """Requests are aborted in every state; others come under the same ids."""
    # The engine, too, sees an id again at once, instead of one made unique.
    monkeypatch.setenv("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")
    engine, asked = small_engine.llm_engine, requests()
    generator = random.Random(11)
    names = [f"request-{index}" for index in range(30)]

    def add(name, index):
        prompt, params = asked[index]
        engine.add_request(name, {"prompt_token_ids": prompt}, params)

    for index, name in enumerate(names):
        add(name, index)
    current = {name: index for index, name in enumerate(names)}
    seen = {}
    for index in range(30, 90):
        for _ in range(generator.randrange(4)):
            seen |= {output.request_id: output for output in engine.step() if output.finished}
        name = generator.choice(names)
        if name not in seen:
            engine.abort_request([name])
        seen.pop(name, None)
        add(name, index)
        current[name] = index
    seen |= step_until(engine, lambda finished: len({*seen, *finished}) == len(names))
    assert not engine.has_unfinished_requests()
    for name, index in current.items():
        check(seen[name], alone[index], f"request {index} as {name}")


def test_several_answers(small_engine, watch):
    """The answers of a request are those of as many requests with the seeds that follow."""
    small_engine.reset_prefix_cache()
    hits = watch.hits.new if watch else 0
    options = {"temperature": 1.0, "max_tokens": 30, "ignore_eos": True}
    prompts = [[5, 6, 7], [8] * 100, [9, 10]]
    together = generate(
        small_engine, [(prompt, SamplingParams(n=6, seed=40, **options)) for prompt in prompts]
    )
    if watch:  # of the long prompt all but the first share its blocks
        assert watch.hits.new - hits == 5
    for prompt, output in zip(prompts, together, strict=True):
        alone = generate(
            small_engine,
            [(prompt, SamplingParams(seed=40 + index, **options)) for index in range(6)],
        )
        found = [list(answer.token_ids) for answer in output.outputs]
        assert found == [list(one.outputs[0].token_ids) for one in alone]
        assert len({*map(tuple, found)}) == 6


def test_streaming_input(small_engine):
    """The answer to a part is the one to all parts and answers before it, and it."""
    parts = [[5, 6, 7] * 15, [11] * 40, [12, 13], [14]]
    options = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
    session = Session(
        small_engine,
        "session",
        SamplingParams(output_kind=RequestOutputKind.DELTA, presence_penalty=0.5, **options),
    )
    heard = []
    for part in parts:
        session.send(part)
        heard.append(session.listen(8))
    session.send([0], last=True)
    small_engine.llm_engine.step()
    prompt = []
    for part, answer in zip(parts, heard, strict=True):
        prompt += part
        params = SamplingParams(presence_penalty=0.5, **options)
        (output,) = generate(small_engine, [(prompt, params)])
        assert answer == list(output.outputs[0].token_ids)
        prompt += answer[:-1]  # vLLM forgets the last token, which it has not computed
