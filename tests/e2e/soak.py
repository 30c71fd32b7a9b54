# SPDX-License-Identifier: Apache-2.0
"""Serves mixed traffic for minutes, then checks that nothing is left over and nothing has grown.

  .venv/bin/python -m tests.e2e.soak --mode paged --minutes 30 --json soak.json

Clients ask short and long prompts, prompts that share prefixes, streams, several answers, seeded
draws and scores of prompts; some leave before their answer is done. The KV cache is small, so that
requests are preempted. What is asked again must be answered as before.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from tests.e2e.server import Server
from tests.e2e.soak_traffic import Traffic
from tests.e2e.test_server import metrics, wait_until_idle

# Variables of the KV cache's modes, and vLLM's name of what a cache of prefixes counts there.
MODES = {
    "managed": {"VLLM_METAL_USE_PAGED_ATTENTION": "0"},
    "prefix-cache": {
        "VLLM_METAL_USE_PAGED_ATTENTION": "0",
        "VLLM_METAL_PREFIX_CACHE": "1",
        "VLLM_METAL_PREFIX_CACHE_FRACTION": "0.006",  # some hundred blocks, so that some go
    },
    "paged": {"VLLM_METAL_USE_PAGED_ATTENTION": "1"},
}
PREFIX_COUNTERS = {"prefix-cache": "external_prefix_cache", "paged": "prefix_cache"}
SERVER_ARGUMENTS = (
    *("--dtype", "float32", "--max-model-len", "1408", "--enable-prompt-tokens-details"),
    *("--max-num-batched-tokens", "512", "--max-num-seqs", "12"),
    *("--num-gpu-blocks-override", "100"),  # of 16 tokens: few for 12 requests
)
IDLE_SECONDS = 60
MIB = 1 << 20
SEEDED_OTHER_SHARE = 0.1  # of seeded answers
# How far the second half may lie above the end of the first.
RSS_SHARE = 0.02
# Until then allocators still fill up: sizes come that were not there before.
SETTLING_SECONDS = 480
RSS_SHARE_WHILE_SETTLING = 0.08
MORE_THREADS = 4
MORE_FILES = 4  # besides the clients' connections


@dataclass
class Sample:
    """The server's processes at a time, in seconds since the traffic began."""

    time: float
    rss: int  # of all processes
    engine_rss: int
    threads: int
    files: int
    running: float
    waiting: float
    kv_cache_usage: float


@dataclass
class Check:
    name: str
    passed: bool
    found: str


@dataclass
class Soak:
    """What a soak found."""

    mode: str
    seconds: float
    clients: int
    checks: list[Check] = field(default_factory=list)
    tally: dict = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def summary(self) -> str:
        tally = self.tally
        lines = [
            f"{self.seconds / 60:.1f} minutes, {self.clients} clients, {self.mode} KV cache",
            f"{sum(tally['answered'].values())} requests answered, "
            f"{sum(tally['aborted'].values())} aborted, {tally['refused']} refused; "
            f"{tally['compared']} compared with an earlier answer; "
            f"{tally['seeded_other']} of {tally['seeded_compared']} seeded ones had another",
            f"{tally['prompt_tokens']} prompt tokens, {tally['cached_tokens']} of them cached; "
            f"{tally['completion_tokens']} generated",
            f"{self.metrics.get('vllm:num_preemptions_total', 0.0):.0f} preemptions",
            "  minute   RSS MiB   engine's   threads   files   running   waiting   KV cache",
        ]
        step = max(1, len(self.samples) // 20)
        lines += [
            f"{s.time / 60:8.1f}{s.rss / MIB:10.1f}{s.engine_rss / MIB:11.1f}"
            f"{s.threads:10}{s.files:8}"
            f"{s.running:10.0f}{s.waiting:10.0f}{s.kv_cache_usage:11.2f}"
            for s in self.samples[::step]
        ]
        lines += [
            f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.found}"
            for check in self.checks
        ]
        return "\n".join(lines)


def take_sample(server: Server, since: float) -> Sample:
    parent = psutil.Process(server.pid)
    processes = [parent, *parent.children(recursive=True)]
    now = metrics(server)
    rss = {process: process.memory_info().rss for process in processes}
    return Sample(
        time=time.monotonic() - since,
        rss=sum(rss.values()),
        engine_rss=sum(used for process, used in rss.items() if "EngineCore" in process.name()),
        threads=sum(process.num_threads() for process in processes),
        files=sum(process.num_fds() for process in processes),
        running=now["vllm:num_requests_running"],
        waiting=now["vllm:num_requests_waiting"],
        kv_cache_usage=now["vllm:kv_cache_usage_perc"],
    )


async def _sample_until(
    done: asyncio.Event, server: Server, every: float, samples: list[Sample]
) -> None:
    since = time.monotonic()
    while not done.is_set():
        with contextlib.suppress(OSError, psutil.Error):  # the end tells of a server that is gone
            samples.append(await asyncio.to_thread(take_sample, server, since))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), every)


async def _drive(server: Server, traffic: Traffic, clients: int, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    done = asyncio.Event()
    sampling = asyncio.create_task(_sample_until(done, server, max(1, seconds / 300), samples))
    try:
        await traffic.drive(clients, seconds)
    finally:
        done.set()
        await sampling
    return samples


def run_soak(server: Server, *, mode: str, seconds: float, clients: int, seed: int = 0) -> Soak:
    """Soak a running server; `seconds` do not count the last answers."""
    traffic = Traffic(server.url, server.name, seed)
    # So that every kind of request was served when files and threads are first counted.
    asyncio.run(traffic.warm_up())
    wait_until_idle(server, IDLE_SECONDS)
    before, idle = metrics(server), take_sample(server, time.monotonic())
    soak = Soak(mode, seconds, clients)
    soak.samples = asyncio.run(_drive(server, traffic, clients, seconds))
    soak.tally = asdict(traffic.tally)
    check = _checker(soak)
    try:
        metrics(server)
    except OSError as error:
        check("the server lives", False, f"{error}\n{server.tail()}")
        return soak
    with contextlib.suppress(AssertionError):  # a check tells
        wait_until_idle(server, IDLE_SECONDS)
    after, end = metrics(server), take_sample(server, time.monotonic() - seconds)
    soak.metrics = {name: after[name] - before.get(name, 0.0) for name in after}
    _check_accounting(check, soak, end)
    _check_growth(check, soak, idle, end)
    return soak


def _checker(soak: Soak) -> Callable[[str, bool, str], None]:
    return lambda name, passed, found: soak.checks.append(Check(name, passed, found))


def _check_accounting(check: Callable, soak: Soak, end: Sample) -> None:
    tally, counted = soak.tally, soak.metrics
    errors, compared, other = tally["errors"], tally["compared"], tally["seeded_other"]
    check(
        "every request is answered, and as before",
        not errors and compared > 0 and other <= SEEDED_OTHER_SHARE * tally["seeded_compared"],
        f"{compared} compared, {len(errors)} errors {errors[:3]}",
    )
    check(
        "nothing runs, waits or holds blocks",
        end.running == end.waiting == end.kv_cache_usage == 0,
        f"{end.running:.0f} running, {end.waiting:.0f} waiting, {end.kv_cache_usage} of the blocks",
    )
    ended = {
        reason: counted.get(f"vllm:request_success_total:{reason}", 0.0)
        for reason in ("stop", "length", "abort", "error")
    }
    # A client that leaves may do so after its answer is done; vLLM counts it as an abort or not.
    least, most = tally["num_answers"], tally["num_answers"] + tally["num_aborted_answers"]
    total = ended["stop"] + ended["length"]
    check(
        "the server counts what the clients count",
        ended["error"] == 0 and least <= total <= total + ended["abort"] <= most,
        f"{total:.0f} answers and {ended['abort']:.0f} aborts of {least} to {most}",
    )
    counter = f"vllm:{PREFIX_COUNTERS.get(soak.mode, 'prefix_cache')}"
    hits = counted.get(f"{counter}_hits_total", 0.0)
    check(
        "prefixes are cached in the modes that do",
        (hits > 0) == (soak.mode in PREFIX_COUNTERS),
        f"{hits:.0f} of {counted.get(f'{counter}_queries_total', 0.0):.0f} tokens",
    )
    num_preemptions = counted.get("vllm:num_preemptions_total", 0.0)
    check(
        "the cache was too small for all", num_preemptions > 0, f"{num_preemptions:.0f} preempted"
    )


def _check_growth(check: Callable, soak: Soak, idle: Sample, end: Sample) -> None:
    middle = soak.seconds / 2
    first = [sample for sample in soak.samples if sample.time < middle]
    second = [sample for sample in soak.samples if middle <= sample.time < soak.seconds]
    end_of_first = [sample.rss for sample in first if sample.time > 0.8 * middle]
    if not end_of_first or not second:
        check("nothing grows", False, f"{len(soak.samples)} samples are too few to tell")
        return
    settled = statistics.median(end_of_first)
    peak = max(s.rss for s in second)
    share = RSS_SHARE if middle >= SETTLING_SECONDS else RSS_SHARE_WHILE_SETTLING
    limit = settled * (1 + share)
    check(
        "memory is flat",
        peak <= limit,
        f"{settled / MIB:.1f} MiB at the end of the first half, at most {peak / MIB:.1f} after it, "
        f"{end.rss / MIB:.1f} at the end; "
        f"{60 * _slope(second) / MIB:+.1f} MiB a minute in the second half",
    )
    check(
        "threads are flat",
        max(s.threads for s in second) <= max(s.threads for s in first) + MORE_THREADS,
        f"{idle.threads} idle, {max(s.threads for s in first)} then "
        f"{max(s.threads for s in second)} under load, {end.threads} at the end",
    )
    check(
        "open files are flat",
        end.files <= idle.files + MORE_FILES
        and max(s.files for s in second) <= max(s.files for s in first) + soak.clients,
        f"{idle.files} idle, {max(s.files for s in first)} then {max(s.files for s in second)} "
        f"under load, {end.files} at the end",
    )


def _slope(samples: list[Sample]) -> float:
    """Return bytes a second, by least squares."""
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([s.time for s in samples], [s.rss for s in samples]).slope


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mode", choices=MODES, default="paged", help="of the KV cache")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the traffic")
    parser.add_argument("--model", type=Path, help="the default model if not given")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options, arguments = parser.parse_known_args()  # the rest are arguments of the server
    if options.model is None:
        from vllm_metal.default_model import ensure_default_model

        options.model = ensure_default_model()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        server_arguments = (*SERVER_ARGUMENTS, *arguments)
        with Server(options.model, log, *server_arguments, variables=MODES[options.mode]) as server:
            soak = run_soak(
                server,
                mode=options.mode,
                seconds=60 * options.minutes,
                clients=options.clients,
                seed=options.seed,
            )
    print(soak.summary())
    if options.json:
        options.json.write_text(json.dumps(asdict(soak), indent=1) + "\n")
    return 0 if soak.passed else 1


if __name__ == "__main__":
    sys.exit(main())
