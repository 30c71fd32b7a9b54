# SPDX-License-Identifier: Apache-2.0
"""vLLM's KV cache events on the real core: what subscribers hear is what is in the cache."""

from collections import Counter

import msgspec
import pytest
import zmq
from vllm import SamplingParams
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from tests.plugin.conftest import one_engine_at_a_time

ENDPOINT = "inproc://kv-events"
BLOCK_SIZE = 16
NUM_BLOCKS = 20  # without vLLM's own
PATIENCE_MS = 20_000


class Subscriber:
    """Keeps what the events say is cached."""

    def __init__(self, llm) -> None:
        self._llm = llm
        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.subscribe("")
        self._socket.connect(ENDPOINT)
        self._next_batch: int | None = None
        self.tokens = {}  # all tokens up to the end of a block, by its hash
        self.copies = Counter()  # by the hash: two blocks may hold the same tokens
        # What is published before the publisher knows of the subscriber is lost.
        for _ in range(100):
            self.generate(list(range(3, 3 + BLOCK_SIZE)), 1)
            if self._socket.poll(50):
                break
            self._llm.reset_prefix_cache()
        else:
            raise AssertionError("no event was heard")
        while self._socket.poll(1000):  # those of earlier turns, which came late
            self._socket.recv_multipart()
        self.clear()

    def close(self) -> None:
        self._socket.close(linger=0)

    def generate(self, prompt, num_tokens):
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        return self._llm.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0]

    def clear(self) -> None:
        """Empty the cache and hear of it."""
        self._llm.reset_prefix_cache()
        self.generate([3], 1)  # events come with steps
        self.listen(AllBlocksCleared)
        assert not self.copies

    def listen(self, kind, count=1):
        """Return the next events, until `count` of them are of this kind."""
        heard = []
        while sum(isinstance(event, kind) for event in heard) < count:
            assert self._socket.poll(PATIENCE_MS), f"{count} {kind.__name__}, heard {heard}"
            _, number, payload = self._socket.recv_multipart()
            assert self._next_batch in (None, int.from_bytes(number))
            self._next_batch = int.from_bytes(number) + 1
            events = self._decoder.decode(payload).events
            for event in events:
                self._take(event)
            heard += events
        return heard

    def _take(self, event) -> None:
        if isinstance(event, BlockStored):
            tokens = list(self.tokens[event.parent_block_hash]) if event.parent_block_hash else []
            assert event.block_size == BLOCK_SIZE
            assert event.medium == "GPU"  # what vLLM calls every device
            assert len(event.token_ids) == BLOCK_SIZE * len(event.block_hashes)
            for index, block_hash in enumerate(event.block_hashes):
                begin = BLOCK_SIZE * index
                tokens = tokens + event.token_ids[begin : begin + BLOCK_SIZE]
                self.tokens[block_hash] = tokens
                self.copies[block_hash] += 1
        elif isinstance(event, BlockRemoved):
            for block_hash in event.block_hashes:
                assert self.copies[block_hash] > 0
                self.copies[block_hash] -= 1
        else:
            self.copies.clear()

    def num_cached(self, prompt) -> int:
        """How many tokens of the prompt lie in cached blocks. Its last one is always computed."""
        ends = range(BLOCK_SIZE, len(prompt), BLOCK_SIZE)
        stored = [self.tokens[block_hash] for block_hash in +self.copies]
        held = [prompt[:end] in stored for end in ends]
        return BLOCK_SIZE * ([*held, False].index(False))


@pytest.fixture(scope="module")
def subscriber(tiny_llama):
    with pytest.MonkeyPatch.context() as patch, one_engine_at_a_time(tiny_llama) as make:
        patch.setenv("VLLM_METAL_USE_PAGED_ATTENTION", "1")
        llm = make(
            dtype="float32",
            max_model_len=128,
            max_num_batched_tokens=64,
            num_gpu_blocks_override=NUM_BLOCKS + 1,
            kv_events_config={"enable_kv_cache_events": True, "endpoint": ENDPOINT},
        )
        subscriber = Subscriber(llm)
        yield subscriber
        subscriber.close()


@pytest.fixture(autouse=True)
def nothing_is_cached(subscriber):
    subscriber.clear()


def prompt_from(first, length):
    """Make a prompt of its own for each `first`, which is below 20."""
    return [3 + (first * 13 + position * 7) % 90 for position in range(length)]


def test_full_blocks_are_stored_as_they_are_computed(subscriber):
    prompt = prompt_from(0, 40)
    answer = list(subscriber.generate(prompt, 30).outputs[0].token_ids)
    events = subscriber.listen(BlockStored, 3)  # two of the prompt at once, then one by one
    assert all(isinstance(event, BlockStored) for event in events)
    computed = prompt + answer[:-1]
    assert [token for event in events for token in event.token_ids] == computed[:64]
    assert subscriber.num_cached([*computed, 3]) == 64


def test_a_shared_prefix_is_stored_once(subscriber):
    prompt = prompt_from(1, 48)
    subscriber.generate(prompt, 1)
    (first,) = subscriber.listen(BlockStored)
    other = prompt[:32] + prompt_from(2, 20)
    output = subscriber.generate(other, 1)
    (second,) = subscriber.listen(BlockStored)
    assert output.num_cached_tokens == 32
    assert second.parent_block_hash == first.block_hashes[1]
    assert second.token_ids == other[32:48]


def test_events_tell_what_later_requests_find(subscriber):
    """Older prompts lose their blocks to newer ones; hits are those that the events foretell."""
    prompts = [prompt_from(first, 70) for first in range(12)]
    hits, expected = [], []
    for prompt in prompts + prompts[::-1]:
        expected.append(subscriber.num_cached(prompt))
        output = subscriber.generate(prompt, 11)
        hits.append(output.num_cached_tokens)
        # The fifth block is stored by the last step, and nothing happens after it.
        subscriber.listen(BlockStored, 1 if hits[-1] == 64 else 2)
    assert hits == expected
    assert hits[12] == 64
    assert hits[-1] == 0
    assert 0 < subscriber.copies.total() <= NUM_BLOCKS
