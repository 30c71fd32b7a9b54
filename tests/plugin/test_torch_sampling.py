# SPDX-License-Identifier: Apache-2.0
"""Custom logits processors: loading, the protocol they are spoken to in, and what is drawn."""

import importlib
import sys
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import (
    LOGITSPROCS_GROUP,
    AdapterLogitsProcessor,
    LogitsProcessor,
    MoveDirectionality,
    validate_logits_processors_parameters,
)
from vllm_metal.custom_logits_processors import LogitsProcessorError
from vllm_metal.torch_sampling import FAILED, TorchSampling

VOCAB = 40
HERE = __name__


class Favour(LogitsProcessor):
    """Adds 100 to the token that extra_args names; follows the batch as vLLM's examples do."""

    @classmethod
    def validate_params(cls, params):
        token = (params.extra_args or {}).get("favour", 0)
        if not 0 <= token < VOCAB:
            raise ValueError(f"favour={token} is no token")

    def __init__(self, vllm_config, device, is_pin_memory):
        self.tokens: dict[int, int] = {}
        self.outputs: dict[int, list[int]] = {}
        self.updates: list = []
        self.batch_size = 0

    def is_argmax_invariant(self):
        return False

    def update_state(self, update):
        self.updates.append(update)
        if update is None:
            return
        self.batch_size = update.batch_size
        for row in update.removed:
            self.tokens.pop(row, None)
            self.outputs.pop(row, None)
        for row, params, _, output_token_ids in update.added:
            self.tokens[row] = (params.extra_args or {}).get("favour", -1)
            self.outputs[row] = output_token_ids
        for source, target, direction in update.moved:
            assert direction == MoveDirectionality.UNIDIRECTIONAL
            self.tokens[target] = self.tokens.pop(source)
            self.outputs[target] = self.outputs.pop(source)

    def apply(self, logits):
        assert set(self.tokens) == set(range(len(logits))) == set(range(self.batch_size))
        for row, token in self.tokens.items():
            if token >= 0:
                logits[row, token] += 100
        return logits


class Counting:
    """A processor of one request: allows the token of its own count only."""

    made = 0

    def __init__(self):
        Counting.made += 1
        self.calls = 0

    def __call__(self, prompt_token_ids, output_token_ids, logits):
        assert len(output_token_ids) == self.calls or self.calls == 0
        self.calls += 1
        mask = torch.full_like(logits, -torch.inf)
        mask[prompt_token_ids[-1] + self.calls] = 0
        return logits + mask


class CountingAdapter(AdapterLogitsProcessor):
    def is_argmax_invariant(self):
        return False

    def new_req_logits_processor(self, params):
        wish = (params.extra_args or {}).get("count")
        if wish == "raise":
            raise KeyError("no such count")
        return Counting() if wish else None


class Fragile(Favour):
    """Fails in the way that extra_args asks for."""

    def update_state(self, update):
        super().update_state(update)
        for _, params, _, _ in update.added if update else ():
            if (params.extra_args or {}).get("fail") == "update":
                raise ZeroDivisionError("in the update")

    def apply(self, logits):
        fail = self.fail if hasattr(self, "fail") else None
        if fail == "apply":
            raise ZeroDivisionError("in apply")
        if fail == "none":
            return None
        return super().apply(logits)


def config(*processors, **changes):
    model_config = SimpleNamespace(
        logits_processors=list(processors) or None,
        runner_type="generate",
        logprobs_mode=changes.pop("logprobs_mode", "raw_logprobs"),
        use_fp64_gumbel=False,
        seed=changes.pop("seed", 0),
        get_vocab_size=lambda: VOCAB,
    )
    defaults = {
        "model_config": model_config,
        "speculative_config": None,
        "reasoning_config": None,
        "use_v2_model_runner": False,
        "scheduler_config": SimpleNamespace(max_num_seqs=16),
    }
    return SimpleNamespace(**defaults | changes)


def make(*processors, **changes) -> TorchSampling:
    sampling = TorchSampling.create(config(*processors or (Favour,), **changes))
    assert sampling is not None
    return sampling


def custom(sampling):
    """Return the custom processor, the first of several."""
    named = [p for p in sampling._processors.logitsprocs.all if hasattr(p, "_processor")]
    return named[0]._processor


def greedy(**arguments) -> SamplingParams:
    return SamplingParams(temperature=0, **arguments)


def favouring(token, **arguments) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, "extra_args": {"favour": token}} | arguments)


@pytest.fixture
def logits():
    return torch.randn(8, VOCAB, generator=torch.Generator().manual_seed(0))


# Loading


def test_nothing_without_custom_processors():
    assert TorchSampling.create(config()) is None


@pytest.mark.parametrize("given", [Favour, f"{HERE}:Favour"])
def test_constructor_argument(given, logits):
    sampling = make(given)
    assert sampling.add("a", favouring(7), [1, 2])
    assert sampling.handles("a")
    assert sampling.sample(["a"], logits[:1]) == ([7], None)


def test_entry_point(tmp_path, monkeypatch, logits):
    info = tmp_path / "favour-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: favour\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{LOGITSPROCS_GROUP}]\nfavour = {HERE}:Favour\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    sampling = TorchSampling.create(config())
    assert sampling is not None
    assert sampling.add("a", favouring(9), [1])
    assert sampling.sample(["a"], logits[:1])[0] == [9]


def test_a_processor_that_cannot_be_loaded_is_named():
    with pytest.raises(RuntimeError, match="no_such_module:Processor"):
        TorchSampling.create(config("no_such_module:Processor"))


def test_second_model_runner_is_refused():
    with pytest.raises(ValueError, match=r"need VLLM_USE_V2_MODEL_RUNNER=0: one:Two"):
        TorchSampling.create(config("one:Two", use_v2_model_runner=True))
    assert TorchSampling.create(config(use_v2_model_runner=True)) is None


def test_front_end_validates_by_the_same_classes():
    validate_logits_processors_parameters([f"{HERE}:Favour"], favouring(3))
    with pytest.raises(VLLMValidationError, match="favour=99 is no token"):
        validate_logits_processors_parameters([f"{HERE}:Favour"], favouring(99))


def test_the_engines_own_config(engine_config, logits):
    vllm_config = engine_config()
    vllm_config.model_config.logits_processors = [Favour]
    sampling = TorchSampling.create(vllm_config)
    assert sampling is not None
    sampling.add("a", favouring(7), [1, 2])
    assert sampling.sample(["a"], torch.zeros(1, 96))[0] == [7]
    with pytest.raises(ValueError, match="Expected 96 logits a row, got 40"):
        sampling.sample(["a"], logits[:1])


# Which requests


def test_adapters_handle_the_requests_they_answer_for(logits):
    Counting.made = 0
    sampling = make(CountingAdapter)
    assert sampling.add("counted", greedy(extra_args={"count": True}), [4, 20])
    assert not sampling.add("plain", greedy(), [4, 20])
    assert sampling.handles("counted")
    assert not sampling.handles("plain")
    for step in range(3):
        assert sampling.sample(["counted"], logits[step : step + 1])[0] == [21 + step]
    assert Counting.made == 1, "asked once a request"


def test_an_adapters_processor_outlives_steps_without_its_request(logits):
    sampling = make(CountingAdapter)
    for name, last in (("a", 10), ("b", 20)):
        sampling.add(name, greedy(extra_args={"count": True}), [last])
    assert sampling.sample(["a", "b"], logits[:2])[0] == [11, 21]
    assert sampling.sample(["b"], logits[:1])[0] == [22]
    assert sampling.sample(["b", "a"], logits[:2])[0] == [23, 12]


def test_parameters_shared_by_requests(logits):
    """The children of n > 1 may share one object."""
    sampling = make(CountingAdapter)
    params = greedy(extra_args={"count": True})
    sampling.add("a", params, [10])
    sampling.add("b", params, [20])
    assert sampling.sample(["a", "b"], logits[:2])[0] == [11, 21]
    sampling.remove("a")
    assert sampling.sample(["b"], logits[:1])[0] == [22]


def test_an_adapter_beside_another_processor(logits):
    sampling = make(CountingAdapter, Favour)
    assert sampling.add("plain", greedy(), [1])
    assert sampling.add("counted", greedy(extra_args={"count": True}), [4])
    tokens, _ = sampling.sample(["plain", "counted"], logits[:2])
    assert tokens == [int(logits[0].argmax()), 5]


def test_an_adapter_of_its_own_protocol_handles_all():
    class Own(CountingAdapter):
        def apply(self, logits):
            return logits

    assert make(Own).add("plain", greedy(), [1])


# The batch


def test_requests_that_come_and_go(logits):
    """Each request gets its own token, whatever the order; rows equal the batch (Favour.apply)."""
    sampling = make()
    generator = np.random.default_rng(0)
    known: dict[str, int] = {}
    outputs: dict[str, list[int]] = {}
    for step in range(120):
        if len(known) < 8 and generator.random() < 0.5:
            name = f"r{generator.integers(12)}"  # at times one that is known: it is replaced
            known[name] = int(generator.integers(VOCAB))
            outputs[name] = []
            sampling.add(name, favouring(known[name]), [1])
        elif known and generator.random() < 0.4:
            gone = str(generator.choice(sorted(known)))
            sampling.remove(gone)
            del known[gone], outputs[gone]
        present = [str(name) for name in generator.permutation(sorted(known))]
        chosen = [name for name in present if generator.random() < 0.8]
        tokens, _ = sampling.sample(chosen, logits[: len(chosen)])
        assert tokens == [known[name] for name in chosen], step
        for name, token in zip(chosen, tokens, strict=True):
            outputs[name].append(token)
        if chosen:
            seen = sorted(map(tuple, custom(sampling).outputs.values()))
            assert seen == sorted(tuple(outputs[name]) for name in chosen)


def test_updates_are_those_of_vllms_batch(logits):
    sampling = make()
    for index, name in enumerate("abcd"):
        sampling.add(name, favouring(index), [1])
    sampling.add("e", favouring(4), [1])
    updates = custom(sampling).updates
    for names in ("abcd", "abcd", "bcd", "bcde"):
        sampling.sample(list(names), logits[: len(names)])
    sampling.add("f", favouring(5), [1])
    sampling.sample(["c", "f"], logits[:2])
    first, none, condensed, added, replaced = updates
    assert [row for row, *_ in first.added] == [0, 1, 2, 3]
    assert none is None
    one_way = MoveDirectionality.UNIDIRECTIONAL  # d moves to the row of a: d b c
    assert (condensed.removed, condensed.added, condensed.moved) == ([], [], [(3, 0, one_way)])
    assert (added.removed, [row for row, *_ in added.added], added.moved) == ([], [3], [])
    # Of d b c e, f takes the first row of three that leave, c moves to the next.
    assert [row for row, *_ in replaced.added] == [0]
    assert (replaced.removed, replaced.moved, replaced.batch_size) == ([3], [(2, 1, one_way)], 2)


def test_nothing_is_built_for_a_step_in_which_nothing_changed(logits):
    sampling = make()
    sampling.add("a", favouring(1), [1])
    sampling.sample(["a"], logits[:1])
    metadata = sampling._metadata
    sampling.sample(["a"], logits[1:2])
    assert sampling._metadata is metadata


def test_a_step_without_requests():
    sampling = make()
    assert sampling.sample([], torch.empty(0, VOCAB)) == ([], None)


def test_preempted_and_resumed(logits):
    sampling = make()
    sampling.add("a", favouring(3), [1])
    sampling.sample(["a"], logits[:1])
    sampling.remove("a")
    sampling.remove("a")
    assert not sampling.handles("a")
    sampling.add("b", favouring(4), [1])
    sampling.sample(["b"], logits[:1])
    sampling.add("a", favouring(3), [1], [3])
    assert sampling.sample(["b", "a"], logits[:2])[0] == [4, 3]
    assert sorted(custom(sampling).outputs.values()) == [[3, 3], [4, 4]]


def test_rows_of_a_larger_batch_stay_as_they_are(logits):
    sampling = make()
    sampling.add("a", favouring(3), [1])
    sampling.add("b", greedy(), [1])
    before = logits.clone()
    bitmask = np.full((8, 2), -1, dtype=np.int32)
    bitmask[5] = [1 << 30, 0]
    tokens, _ = sampling.sample(["b", "a"], logits, bitmask, rows=[5, 2])
    assert tokens == [30, 3]
    assert torch.equal(logits, before)


# Sampling parameters, together with a custom processor


def test_every_parameter_that_decides_a_greedy_token(logits):
    row = torch.zeros(VOCAB)
    row[[5, 6, 7, 8]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    cases = {
        "plain": (greedy(), [], 5),
        "allowed": (greedy(allowed_token_ids=[7, 8]), [], 7),
        "bias": (greedy(logit_bias={30: 50.0}), [], 30),
        "bad": (greedy(bad_words=["x"]), [9], 6),
        "repetition": (greedy(repetition_penalty=2.0), [], 6),  # 5 stands in the prompt
        "presence": (greedy(presence_penalty=1.5), [5], 6),
        "frequency": (greedy(frequency_penalty=0.75), [5, 5], 6),
        "min_tokens": (greedy(min_tokens=2, stop_token_ids=[5]), [9], 6),
        "min_tokens_reached": (greedy(min_tokens=1, stop_token_ids=[5]), [9], 5),
        "favour": (favouring(2), [], 2),
    }
    cases["bad"][0]._bad_words_token_ids = [[9, 5]]
    sampling = make()
    for name, (params, outputs, _) in cases.items():
        sampling.add(name, params, [5, 1], outputs)
    expected = [token for *_, token in cases.values()]
    assert sampling.sample(list(cases), row.repeat(len(cases), 1))[0] == expected
    for name, (params, outputs, token) in cases.items():
        alone = make()
        alone.add(name, params, [5, 1], outputs)
        assert alone.sample([name], row[None])[0] == [token]


def test_filters_and_temperature_leave_the_distribution_they_should():
    row = torch.linspace(0, 3, VOCAB)
    processed = row.clone()
    processed[4] += 3
    params = {
        "top_k": (dict(temperature=0.7, top_k=3), lambda p: p >= p.sort().values[-3]),
        "top_p": (dict(top_p=0.2), lambda p: _smallest_set(p, 0.2)),
        "min_p": (dict(min_p=0.8), lambda p: p >= 0.8 * p.max()),
    }

    class Raise4(Favour):
        def apply(self, logits):
            logits[:, 4] += 3
            return logits

    sampling = make(Raise4)
    draws = {name: Counter() for name in params}
    for name, (arguments, _) in params.items():
        sampling.add(name, SamplingParams(seed=1, **arguments), [1])
    sampling.add("greedy", greedy(), [1])  # in the same batch
    batch = row.repeat(len(params) + 1, 1)
    count = 1500
    for _ in range(count):
        tokens, _ = sampling.sample([*params, "greedy"], batch)
        assert tokens.pop() == 4
        for name, token in zip(params, tokens, strict=True):
            draws[name][token] += 1
    for name, (arguments, keep) in params.items():
        probabilities = (processed / arguments.get("temperature", 1)).softmax(-1)
        kept = torch.where(keep(probabilities), probabilities, 0)
        kept /= kept.sum()
        assert set(draws[name]) == set(kept.nonzero().flatten().tolist()), name
        chi_square = sum(
            (draws[name][token] - count * p) ** 2 / (count * p)
            for token, p in enumerate(kept.tolist())
            if p
        )
        assert chi_square < 35, name  # 0.1 % of 14 degrees of freedom is 36


def test_filters_where_triton_is(monkeypatch, logits):
    sampling = make()
    sampling.add("a", SamplingParams(top_k=1), [1])
    sampling.add("b", SamplingParams(top_p=1e-6), [1])
    monkeypatch.setattr("vllm.v1.sample.ops.topk_topp_sampler.HAS_TRITON", True)
    assert sampling.sample(["a", "b"], logits[:2])[0] == logits[:2].argmax(-1).tolist()


def _smallest_set(probabilities, top_p):
    order = probabilities.argsort(descending=True)
    kept = torch.zeros(VOCAB, dtype=torch.bool)
    kept[order[: int((probabilities[order].cumsum(0) < top_p).sum()) + 1]] = True
    return kept


def test_seeded_draws_depend_on_seed_and_output_index_only(logits):
    rows = [logits[step : step + 1] for step in range(6)]

    def draw(outputs, start, seed=5, others=0):
        sampling = make()
        for other in range(others):
            sampling.add(f"o{other}", SamplingParams(seed=other), [1])
        sampling.add("a", SamplingParams(seed=seed), [1], outputs)
        names = [f"o{other}" for other in range(others)] + ["a"]
        return [sampling.sample(names, row.repeat(len(names), 1))[0][-1] for row in rows[start:]]

    alone = draw([], 0)
    assert draw([], 0, others=3) == alone
    assert draw(alone[:4], 4) == alone[4:], "resumed"
    assert draw([], 0, seed=6) != alone
    assert draw([], 0, seed=-(2**63)) != draw([], 0, seed=2**63 - 1)


def test_draws_without_a_seed_differ():
    sampling = make()
    for name in "abcd":
        sampling.add(name, SamplingParams(), [1])
    flat = torch.zeros(4, VOCAB)
    drawn = [tuple(sampling.sample(list("abcd"), flat)[0]) for _ in range(8)]
    assert len(set(drawn)) == len(drawn)
    assert len({tuple(column) for column in zip(*drawn, strict=True)}) == 4
    assert all(first != second for first, second in pairwise(drawn))


def test_seeds_of_requests_come_from_the_engines(logits):
    def drawn(seed):
        sampling = make(seed=seed)
        for name in "ab":
            sampling.add(name, favouring(-1, temperature=1.0), [5])
        flat = torch.zeros_like(logits[:2])
        return [sampling.sample(["a", "b"], flat)[0] for _ in range(8)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    "mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]
)
def test_logprobs(mode, logits):
    sampling = make(logprobs_mode=mode)
    wishes = {
        "two": favouring(3, logprobs=2),
        "none": greedy(),
        "all": favouring(9, logprobs=-1),
        "zero": greedy(logprobs=0),
        "given": favouring(4, logprob_token_ids=[4, 0, 17]),
    }
    for name, params in wishes.items():
        sampling.add(name, params, [1])
    sampling.sample(["all", "given"], logits[:2])  # so that rows and requests differ in order
    tokens, logprobs = sampling.sample(list(wishes), logits[:5])
    assert tokens[0] == 3
    assert logprobs.logprobs.shape == logprobs.logprob_token_ids.shape == (5, VOCAB + 1)

    scores = logits[:5].clone()
    if mode.startswith("processed"):
        for row, token in ((0, 3), (2, 9), (4, 4)):
            scores[row, token] += 100
    if mode.endswith("logprobs"):
        scores = scores.log_softmax(-1)
    best = scores.argsort(dim=-1, descending=True)
    columns = [best[0, :2], None, best[2], best[3, :0], torch.tensor([4, 0, 17])]
    for row, (token, others) in enumerate(zip(tokens, columns, strict=True)):
        ids = [] if others is None else [token, *others.tolist()]
        assert logprobs.logprob_token_ids[row].tolist() == ids + [0] * (VOCAB + 1 - len(ids))
        expected = np.full(VOCAB + 1, -np.inf, dtype=np.float32)
        expected[: len(ids)] = scores[row, ids]
        np.testing.assert_allclose(logprobs.logprobs[row], expected, rtol=1e-6)
        rank = 0 if others is None else best[row].tolist().index(token) + 1
        assert logprobs.sampled_token_ranks[row] == rank


def test_grammar_comes_first(logits):
    sampling = make()
    sampling.add("a", favouring(7, logprobs=0), [1])
    sampling.add("b", favouring(7), [1])
    bitmask = np.full((2, 2), -1, dtype=np.int32)
    bitmask[0] = [(1 << 2) - 2**31, 1 << 7]  # tokens 2, 31 and 39
    tokens, logprobs = sampling.sample(["a", "b"], logits[:2], bitmask)
    allowed = logits[0, [2, 31, 39]]
    assert tokens == [[2, 31, 39][int(allowed.argmax())], 7]
    expected = allowed.log_softmax(0).max()
    np.testing.assert_allclose(logprobs.logprobs[0, 0], expected, rtol=1e-6)


def test_thinking_budget(logits):
    reasoning = SimpleNamespace(reasoning_start_token_ids=[30], reasoning_end_token_ids=[31])
    sampling = make(reasoning_config=reasoning)
    sampling.add("budget", favouring(5, thinking_token_budget=2), [1, 30])
    sampling.add("free", favouring(6), [1, 30])
    names = ["budget", "free"]
    drawn = [sampling.sample(names, logits[:2])[0] for _ in range(4)]
    assert [budget for budget, _ in drawn] == [5, 5, 31, 5]
    # The row that the budget applied to is another's now, which has none.
    sampling.add("budget", favouring(5, thinking_token_budget=0), [1, 30])
    assert sampling.sample(names, logits[:2])[0] == [31, 6]
    sampling.remove("budget")
    assert [sampling.sample(["free"], logits[:1])[0] for _ in range(3)] == [[6]] * 3


# Failures


def test_logits_without_numbers_fail_their_row_only(logits):
    sampling = make()
    for name in "abc":
        sampling.add(name, greedy(logprobs=0), [1])
    logits[0, 3] = torch.nan
    logits[2] = -torch.inf
    tokens, logprobs = sampling.sample(["a", "b", "c"], logits[:3])
    best = int(logits[1].argmax())
    assert tokens == [FAILED, best, FAILED]
    assert logprobs.logprob_token_ids[:, 0].tolist() == [0, best, 0]
    assert logprobs.sampled_token_ranks.tolist() == [0, 1, 0]
    assert sorted(custom(sampling).outputs.values()) == [[], [], [best]]


def test_an_adapter_that_fails_is_named(logits):
    sampling = make(CountingAdapter)
    sampling.add("a", greedy(extra_args={"count": True}), [1])
    with pytest.raises(
        LogitsProcessorError, match=f"{HERE}:CountingAdapter, asked for request a, raised KeyError"
    ):
        sampling.add("a", greedy(extra_args={"count": "raise"}), [1])
    assert not sampling.handles("a")
    assert not sampling._processors._adapters[0]._answers


@pytest.mark.parametrize("fail", ["apply", "none", "update"])
def test_a_failing_step_leaves_the_batch_usable(fail, logits):
    sampling = make(Fragile, Favour)  # the second does not hear of what the first fails at
    sampling.add("a", favouring(3), [1])
    sampling.add("b", favouring(4), [1])
    assert sampling.sample(["a", "b"], logits[:2])[0] == [3, 4]

    sampling.add("c", greedy(extra_args={"fail": fail}), [1])
    custom(sampling).fail = fail
    text = "got NoneType" if fail == "none" else f"in {fail}.*raised ZeroDivisionError"
    with pytest.raises(LogitsProcessorError, match=f"{HERE}:Fragile.*{text}"):
        sampling.sample(["c", "a", "b"], logits[:3])
    custom(sampling).fail = None

    sampling.remove("c")
    assert sampling.sample(["b"], logits[:1])[0] == [4]
    assert sampling.sample(["b", "a"], logits[:2])[0] == [4, 3]
    assert sorted(custom(sampling).outputs.values()) == [[3, 3], [4, 4, 4]], "no token twice"
