# SPDX-License-Identifier: Apache-2.0
"""What a server does when the system runs short of memory, before the system kills it."""

import enum
import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm_metal.log import get_logger

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

logger = get_logger(__name__)

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_A_STAGE = 2.0  # that each gets to be of use


class Relief(enum.IntEnum):
    """What is done, each stage with all before it."""

    NONE = 0
    PREEMPT = 1
    DROP_PREFIX_CACHE = 2
    REFUSE = 3


def _pressure() -> str:
    from vllm_metal import _core

    return _core.memory_pressure()


class MemoryWatch:
    """Looks at the system's memory now and then and says what is to be done.

    Critical pressure calls for one stage after the other; a warning keeps the stage that was
    reached, normal pressure ends all.
    """

    def __init__(
        self,
        probe: Callable[[], str] = _pressure,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self._entered = 0.0
        self._looking = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        self.stage = Relief.NONE

    def tell(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of the stage, on the thread that looks."""
        self._listeners.append(listener)

    def look(self) -> None:
        """Look once."""
        with self._looking:
            pressure, now = self._probe(), self._clock()
            if pressure == "normal":
                self._enter(Relief.NONE, now)
            elif pressure == "critical" and (
                self.stage == Relief.NONE or now - self._entered >= _SECONDS_A_STAGE
            ):
                self._enter(Relief(min(self.stage + 1, Relief.REFUSE)), now)

    def start(self) -> "MemoryWatch":
        """Look from now on, on a thread of its own that ends with the process."""

        def keep_looking() -> None:
            while True:
                try:
                    self.look()
                except Exception:  # such as too many open files: the next look may succeed
                    logger.exception("The system's memory could not be looked at.")
                time.sleep(_SECONDS_BETWEEN_LOOKS)

        threading.Thread(target=keep_looking, name="memory-watch", daemon=True).start()
        return self

    def _enter(self, stage: Relief, now: float) -> None:
        if stage == self.stage:
            return
        logger.warning(_MESSAGES[stage])
        self._entered, self.stage = now, stage
        for listener in self._listeners:
            listener()


_MESSAGES = {
    Relief.NONE: "The system has enough memory again; all requests go on.",
    Relief.PREEMPT: "The system runs short of memory: half of the running requests wait.",
    Relief.DROP_PREFIX_CACHE: "The system still runs short of memory: prefixes are forgotten.",
    Relief.REFUSE: "The system still runs short of memory: new requests are refused.",
}


@functools.cache
def process_watch() -> MemoryWatch:
    """Return the watch of this process, which looks from the first call on."""
    return MemoryWatch().start()


class SchedulerRelief:
    """Does to a scheduler what its watch says, once a stage, between two steps."""

    def __init__(self, watch: MemoryWatch) -> None:
        self._watch = watch
        self._done = Relief.NONE
        self._max_num_active: int | None = None  # of the scheduler, while it may have fewer
        self._num_running = 0  # those that may run then

    def forgets_prefixes(self) -> bool:
        """Return whether the stage that was reached leaves no prefix in memory."""
        return self._done >= Relief.DROP_PREFIX_CACHE

    def apply(self, scheduler: "Scheduler") -> None:
        """Do what is new. Requests that wait resume where they were, with the same tokens."""
        if (stage := self._watch.stage) != self._done:
            self._go_to(stage, scheduler)
        if self._max_num_active is not None:
            # vLLM counts sessions that wait for their client's input as active, too.
            waiting = scheduler.num_waiting_for_streaming_input
            scheduler.max_num_active_reqs = min(self._max_num_active, self._num_running + waiting)

    def _go_to(self, stage: Relief, scheduler: "Scheduler") -> None:
        from vllm_metal import _core

        if stage == Relief.NONE:
            if self._max_num_active is not None:
                scheduler.max_num_active_reqs = self._max_num_active
            self._max_num_active = None
        if stage >= Relief.PREEMPT > self._done:
            self._max_num_active = scheduler.max_num_active_reqs
        if stage >= Relief.PREEMPT:
            self._preempt_half(scheduler)
        prefix_cache = scheduler.connector  # of the MLX-managed KV cache
        has_prefixes = scheduler.cache_config.enable_prefix_caching or prefix_cache is not None
        if stage >= Relief.DROP_PREFIX_CACHE > self._done and has_prefixes:
            scheduler.reset_prefix_cache()
        if prefix_cache is not None:
            prefix_cache.saves = stage < Relief.DROP_PREFIX_CACHE
        self._done = stage
        _core.return_unused_memory()

    def _preempt_half(self, scheduler: "Scheduler") -> None:
        """Have the later half of the running requests wait; one always runs."""
        self._num_running = max(1, len(scheduler.running) // 2)
        timestamp = time.monotonic()
        while len(scheduler.running) > self._num_running:
            scheduler._preempt_request(_take_last(scheduler), timestamp)


def _take_last(scheduler: "Scheduler") -> "Request":
    """Take the running request that vLLM would preempt first."""
    from vllm.v1.core.sched.request_queue import SchedulingPolicy

    if scheduler.policy != SchedulingPolicy.PRIORITY:
        return scheduler.running.pop()
    last = max(scheduler.running, key=lambda request: (request.priority, request.arrival_time))
    scheduler.running.remove(last)
    return last
