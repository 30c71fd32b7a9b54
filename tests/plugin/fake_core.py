# SPDX-License-Identifier: Apache-2.0
"""A stand-in for `vllm_metal._core` whose model is a function of the tokens.

It checks the scheduler's contract at every step: the positions of a request are computed once
and in order, its tokens are those it was given and those it drew, and the KV cache never holds
more blocks than it was promised; if it is paged, a request's blocks hold its own tokens and no
others, and what is loaded from the prefix cache is the beginning of its own tokens. The token
after a prefix is `next_token(prefix)`, so a test can predict every output, whatever the batches,
the chunks and the preemptions were.
"""

import itertools
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

__version__ = "0.0.0"
mlx_version = "0.0.0"

VOCAB_SIZE = 96
NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM = 2, 2, 16
# A request whose last token is this one gets NaN logits.
NAN_TOKEN = 95
FIRST_TOKEN = 3  # the ones before end a request or pad it

MEMORY = 8 << 30
NUM_PREFIX_BLOCKS = 30  # of the prefix cache

_DEFAULTS = {
    "VLLM_METAL_MEMORY_FRACTION": "auto",
    "VLLM_METAL_USE_MLX": "1",
    "VLLM_MLX_DEVICE": "gpu",
    "VLLM_METAL_BLOCK_SIZE": "16",
    "VLLM_METAL_USE_PAGED_ATTENTION": "0",
    "VLLM_METAL_DEBUG": "0",
    "VLLM_USE_MODELSCOPE": "False",
    "VLLM_METAL_MODELSCOPE_CACHE": "",
    "VLLM_METAL_PREFIX_CACHE": "",
    "VLLM_METAL_PREFIX_CACHE_FRACTION": "0.05",
}

PAGED_BLOCK_SIZES = (8, 16, 32, 64, 128)  # of the real core


def next_token(tokens):
    """Return the token after `tokens`; never NAN_TOKEN."""
    count = VOCAB_SIZE - FIRST_TOKEN - 1
    middle = tokens[len(tokens) // 2]
    return FIRST_TOKEN + (31 * tokens[-1] + 17 * tokens[0] + 7 * middle + len(tokens)) % count


def generate(prompt, num_tokens):
    """Return what the model says after `prompt`."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


def set_log_sink(callback):
    pass


def environment():
    return [
        {
            "name": name,
            "value": os.environ.get(name, default),
            "default": default,
            "meaning": "",
            "is_set": name in os.environ,
        }
        for name, default in _DEFAULTS.items()
    ]


def device_info():
    return {
        "type": "cpu",
        "name": "Fake device",
        "backend": "cpu",
        "total_memory": MEMORY,
        "available_memory": MEMORY,
        "working_set": MEMORY,
    }


@dataclass
class MemoryPlan:
    kv_cache: int
    arguments: dict
    prefix_cache: int = 0

    def table(self):
        return "Memory plan (fake)"


# Plans whose limits were set, and None for each time they were released.
memory_limits: list[MemoryPlan | None] = []


def plan_memory(**arguments):
    blocks = (
        arguments["num_blocks"] or -(-arguments["max_model_len"] // arguments["block_size"]) + 1
    )
    kv_cache = arguments["kv_cache_bytes"] or blocks * arguments["block_bytes"]
    prefix_cache = NUM_PREFIX_BLOCKS * arguments["block_bytes"] if arguments["prefix_cache"] else 0
    return MemoryPlan(kv_cache, arguments, prefix_cache)


apply_memory_limits = memory_limits.append


def release_memory_limits():
    memory_limits.append(None)


memory_returned = []  # when


def memory_pressure():
    return "normal"


def return_unused_memory():
    memory_returned.append(time.monotonic())


def memory_stats():
    return {"active": 5 << 20, "peak": 6 << 20, "cache": 0}


def check_weight_files(model_dir, *, read_pickle=None):
    if not any(Path(model_dir).glob("*.safetensors")):
        raise ValueError(f"[weights] {model_dir} holds no safetensors.")


def supported_architectures():
    return ["LlamaForCausalLM", "MistralForCausalLM"]


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: list = field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    bad_words_token_ids: list = field(default_factory=list)
    min_tokens: int = 0
    all_stop_token_ids: list[int] = field(default_factory=list)
    has_grammar: bool = False
    thinking_token_budget: int | None = None
    num_logprobs: int | None = None
    logprob_token_ids: list[int] = field(default_factory=list)
    num_prompt_logprobs: int | None = None
    prompt_logprob_token_ids: list[int] = field(default_factory=list)
    prompt_logprob_ids_per_row: int = 0
    prompt_logprob_start: int = 0


@dataclass
class StepOutput:
    token_ids: list[list[int]]
    failed: list[int]
    logprobs: tuple | None = None
    prompt_logprobs: list[tuple] = field(default_factory=list)
    forward_ms: float = 0.0
    sampling_ms: float = 0.0


@dataclass
class PendingOutput:
    output: StepOutput

    def wait(self):
        return self.output


@dataclass
class Request:
    tokens: list[int]
    num_output: int
    params: SamplingParams
    num_computed: int = 0
    blocks: list[int] = field(default_factory=list)


def _prefixes(tokens):
    """Return a hash of each prefix of `tokens`, the shortest first."""
    return itertools.accumulate(tokens, lambda before, token: hash((before, token)))


class BlockPool:
    """What the blocks of a paged KV cache hold: of each token all that it depends on."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self._slots = {}  # by block and place in it

    def copy(self, source, target):
        for place in range(self.block_size):
            self._slots[target, place] = self._slots.get((source, place))

    def write(self, request, begin, end):
        for position, prefix in enumerate(_prefixes(request.tokens[:end])):
            if position >= begin:
                self._slots[self._slot(request, position)] = prefix

    def check(self, request):
        """Everything computed of a request is where its blocks say."""
        for position, prefix in enumerate(_prefixes(request.tokens[: request.num_computed])):
            found = self._slots.get(self._slot(request, position))
            assert found == prefix, "a block holds something else"

    def _slot(self, request, position):
        block = request.blocks[position // self.block_size]
        assert 0 < block < self.num_blocks
        return block, position % self.block_size


class PrefixIndex:
    """The core's, by a search for the least recently used."""

    def __init__(self, num_blocks):
        self.num_blocks = num_blocks
        self.step = 0
        self.clear()

    def __len__(self):
        return len(self._blocks)

    def clear(self):
        self._blocks = {}  # by hash: block, step of the last use; the least recent first

    def begin_step(self):
        self.step += 1

    def match(self, hashes):
        held = list(itertools.takewhile(self._blocks.__contains__, hashes))
        self._use(held)
        return [self._blocks[key][0] for key in held]

    def save(self, hashes):
        held = self.match(hashes)
        new = []
        for key in hashes[len(held) :]:
            block = self._place()
            if block is None:
                break
            self._blocks[key] = block, self.step
            new.append(block)
        self._use(hashes[: len(held) + len(new)])
        return len(held), new

    def _use(self, hashes):
        for key in reversed(hashes):
            self._blocks[key] = self._blocks.pop(key)[0], self.step

    def _place(self):
        if len(self._blocks) < self.num_blocks:
            return min(set(range(self.num_blocks)) - {block for block, _ in self._blocks.values()})
        key, (block, step) = next(iter(self._blocks.items()))
        if step == self.step:
            return None
        del self._blocks[key]
        return block


@dataclass(kw_only=True)
class PrefixCacheInput:
    clear: bool = False
    saves_of_ended: list = field(default_factory=list)
    loads: list = field(default_factory=list)
    saves_of_scheduled: list = field(default_factory=list)


class PrefixCache:
    """What the blocks of a prefix cache hold: of each the tokens until its end, hashed."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.blocks = {}

    def save(self, request, first_block, blocks):
        ends = range(self.block_size, request.num_computed + 1, self.block_size)
        prefixes = list(_prefixes(request.tokens[: request.num_computed]))
        contents = [prefixes[end - 1] for end in ends]
        assert first_block + len(blocks) <= len(contents), "tokens are saved before they are there"
        assert all(0 <= block < self.num_blocks for block in blocks)
        self.blocks.update(zip(blocks, contents[first_block:], strict=False))

    def load(self, request, blocks):
        prefixes = list(_prefixes(request.tokens))
        for index, block in enumerate(blocks):
            end = (index + 1) * self.block_size
            assert end < len(request.tokens), "the last token has to be computed"
            assert self.blocks[block] == prefixes[end - 1], "a block holds something else"
        request.num_computed = len(blocks) * self.block_size


@dataclass
class Counts:
    steps: int = 0
    chunks: int = 0
    preemptions: int = 0
    largest_batch: int = 0
    prefix_hits: int = 0
    resumed_hits: int = 0  # of them after a preemption


class ModelRunner:
    instances: ClassVar[list["ModelRunner"]] = []

    num_layers = NUM_LAYERS
    num_kv_heads = NUM_KV_HEADS
    head_dim = HEAD_DIM
    vocab_size = VOCAB_SIZE
    weight_bytes = 1 << 20

    def __init__(
        self, model_dir, config_json, dtype, *, progress=None, read_pickle=None, **sampler
    ):
        self.model_dir, self.config_json, self.dtype = model_dir, config_json, dtype
        self.sampler = sampler
        self.requests = {}
        self.counts = Counts()
        self.memory_calls = []
        progress(self.weight_bytes, self.weight_bytes)
        ModelRunner.instances.append(self)

    def measure_activations(self, num_tokens, num_requests):
        assert num_tokens >= num_requests > 0
        self.measured = num_tokens, num_requests
        return 1000

    def discard_kv_cache(self):
        self.memory_calls.append("kv_cache")

    def unload_weights(self):
        self.memory_calls.append("weights")

    def load_weights(self, progress, *, read_pickle=None):
        progress(self.weight_bytes, self.weight_bytes)
        self.memory_calls.append("load")

    def initialize_kv_cache(self, num_tokens, block_size, num_prefix_cache_blocks=0):
        assert num_tokens > 0
        assert num_tokens % block_size == 0
        self.capacity, self.block_size = num_tokens, block_size
        self.pool = None
        self.prefix_cache = PrefixCache(num_prefix_cache_blocks, block_size)

    def initialize_paged_kv_cache(self, num_blocks, block_size):
        assert num_blocks > 1
        assert block_size in PAGED_BLOCK_SIZES
        self.capacity, self.block_size = num_blocks * block_size, block_size
        self.pool = BlockPool(num_blocks, block_size)

    def launch(
        self,
        *,
        finished=(),
        preempted=(),
        new_requests=(),
        sessions=(),
        updates=(),
        scheduled=(),
        blocks=(),
        block_copies=(),
        prefix_cache=None,
    ):
        prefix_cache = prefix_cache or PrefixCacheInput()
        if prefix_cache.clear:
            self.prefix_cache.blocks.clear()
        assert {save[0] for save in prefix_cache.saves_of_ended} <= {*finished, *preempted}
        self._save_prefixes(prefix_cache.saves_of_ended)
        for request_id in finished:
            self.requests.pop(request_id, None)
        for request_id in preempted:
            self.requests[request_id].num_computed = 0
            self.counts.preemptions += 1
        for request_id, tokens, num_output, params in new_requests:
            assert isinstance(params, SamplingParams)
            self.requests[request_id] = Request(list(tokens), num_output, params)
        for request_id, tokens, num_output, params in sessions:
            computed = self.requests[request_id].num_computed
            assert self.requests[request_id].tokens[:computed] == tokens[:computed]
            self.requests[request_id] = Request(list(tokens), num_output, params, computed)
        for request_id, tokens in updates:
            request = self.requests[request_id]
            # A reset of the prefix cache forgets what a step under way draws, which is known here.
            num_forgotten = len(request.tokens) - len(tokens)
            assert num_forgotten in (0, 1)
            assert request.tokens[: len(tokens)] == tokens
            request.tokens = list(tokens)
            request.num_output -= num_forgotten
        if self.pool is not None:
            assert not sessions, "blocks say what is computed"
            self._take_blocks(blocks, scheduled)
            for source, target in block_copies:
                self.pool.copy(source, target)
        self._load_prefixes(prefix_cache.loads)
        for request_id, num_computed, num_scheduled in scheduled:
            self._compute(self.requests[request_id], num_computed, num_scheduled)
        if self.pool is None:
            self._check_capacity()
        else:  # once all is written: a prefix may be shared in the step that computes it
            for request_id, *_ in scheduled:
                self.pool.check(self.requests[request_id])
        self._save_prefixes(prefix_cache.saves_of_scheduled)
        self._scheduled = scheduled

    def draw(self, *, grammar_ids=(), bitmask=None, given=()):
        output = StepOutput([], [])
        for row, (request_id, *_) in enumerate(self._scheduled):
            self._sample(self.requests[request_id], row, output)
        self._count(self._scheduled, output)
        output.logprobs = self._logprobs(self._scheduled, output)
        return PendingOutput(output)

    def step(self, **arguments):
        self.launch(**arguments)
        return self.draw().wait()

    def _save_prefixes(self, saves):
        for request_id, first_block, cached in saves:
            self.prefix_cache.save(self.requests[request_id], first_block, cached)

    def _load_prefixes(self, loads):
        for request_id, first_block, cached in loads:
            assert first_block == 0
            assert self.requests[request_id].num_computed == 0
            request = self.requests[request_id]
            self.prefix_cache.load(request, cached)
            self.counts.prefix_hits += 1
            self.counts.resumed_hits += request.num_output > 0

    def _take_blocks(self, blocks, scheduled):
        """Requests with other blocks than before may have computed tokens in them."""
        num_computed = {request_id: computed for request_id, computed, _ in scheduled}
        for request_id, block_ids, replaces in blocks:
            request = self.requests[request_id]
            if replaces:
                assert request.num_computed == 0
                request.blocks = []
                request.num_computed = num_computed[request_id]
                self.counts.prefix_hits += request.num_computed > 0
            request.blocks += block_ids

    def _compute(self, request, num_computed, num_scheduled):
        assert num_computed == request.num_computed, "a position is skipped or computed twice"
        assert num_scheduled > 0
        if self.pool is not None:
            self.pool.write(request, num_computed, num_computed + num_scheduled)
        request.num_computed += num_scheduled
        assert request.num_computed <= len(request.tokens)

    def _sample(self, request, row, output):
        output.token_ids.append([])
        if request.num_computed < len(request.tokens):
            return
        if request.tokens[-1] == NAN_TOKEN:
            output.failed.append(row)
            request.tokens.append(NAN_TOKEN)  # a step may be launched before anyone hears of it
            return
        request.tokens.append(next_token(request.tokens))
        request.num_output += 1
        output.token_ids[-1].append(request.tokens[-1])

    def _check_capacity(self):
        size = self.block_size
        blocks = sum(-(-request.num_computed // size) for request in self.requests.values())
        assert blocks * size <= self.capacity

    def _count(self, scheduled, output):
        self.counts.steps += 1
        self.counts.chunks += sum(
            not tokens and row not in output.failed for row, tokens in enumerate(output.token_ids)
        )
        self.counts.largest_batch = max(self.counts.largest_batch, len(scheduled))

    def _logprobs(self, scheduled, output):
        """Column 0: the token drawn, at logprob -0.5; column j: token j at -j."""
        asked = [self.requests[row[0]].params.num_logprobs for row in scheduled]
        if all(number is None for number in asked):
            return None
        width = 1 + max(number or 0 for number in asked)
        drawn = [tokens[0] for tokens in output.token_ids if tokens]
        token_ids = np.tile(np.arange(width, dtype=np.int32), (len(drawn), 1))
        logprobs = -np.tile(np.arange(width, dtype=np.float32), (len(drawn), 1))
        if drawn:
            token_ids[:, 0], logprobs[:, 0] = drawn, -0.5
        offsets = np.cumsum([0, *(len(tokens) for tokens in output.token_ids)]).tolist()
        return token_ids, logprobs, np.full(len(drawn), 7, dtype=np.int32), offsets
