# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` from start to ready, split into what takes the time, and its memory under load.

  our part   imports of this package and of MLX in all processes, making the engine, loading the
             weights; less a plain read of their file
  memory     most that the engine's process held while 32 clients were served, to 1.1 times
             weights and planned KV cache, and 300 MB

Python times the imports itself (PYTHONPROFILEIMPORTTIME), which makes the start a little longer.
A start takes most of a minute, so one is counted unless --runs says more, and none is left out as
warm-up: run it twice, or after other benchmarks, for files in the system's cache.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import load
import peers
import psutil
import servers
from machine import Machine
from measure import AT_MOST, Result, Row, arguments

LOAD = load.Load(clients=32, prompt_len=128, new_tokens=128)
KV_CACHE_BYTES = 256 << 20
OVERHEAD, PROCESS_BYTES = 1.1, 300e6
IMPORT = re.compile(r"^.*import time: +(\d+) \| +\d+ \| +(\S+)", re.MULTILINE)
OUR_MODULES = ("vllm_metal", "mlx")

Figures = dict[str, float]


def read_seconds(model: Path) -> float:
    """Time of reading the weights' files, as fast as this machine's now gives them."""
    start = time.perf_counter()
    for file in model.glob("*.safetensors"):
        file.read_bytes()
    return time.perf_counter() - start


def parts(log: str, total: float, read: float) -> Figures:
    """Seconds of a start by what they were spent on; processes start one after the other."""
    imports = [(int(us) / 1e6, name.split(".")[0]) for us, name in IMPORT.findall(log)]
    own = sum(seconds for seconds, package in imports if package in OUR_MODULES)
    loading = float(_only(r"Loaded .* of weights from .* in ([\d.]+) s", log))
    engine = float(_only(r"init engine .* took ([\d.]+) s", log))
    return {
        "ready": total,
        "weights": read,
        "our part": own + max(loading - read, 0) + engine,
        "our imports": own,
        "other imports": sum(seconds for seconds, _ in imports) - own,
    }


def _only(pattern: str, log: str) -> str:
    found = re.search(pattern, log)
    if found is None:
        raise RuntimeError(f"The server's log has no line like {pattern}:\n{log[-3000:]}")
    return found[1]


def engine_process(server: servers.Server) -> psutil.Process:
    for process in psutil.Process(server.pid).children(recursive=True):
        if "EngineCore" in " ".join(process.cmdline()):
            return process
    raise RuntimeError("no process of the engine was found")


def memory(process: psutil.Process) -> Figures:
    """Megabytes: the most so far, and now that of libraries and the like (only Linux tells)."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return {"peak": process.memory_info().rss / 1e6}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    kilobytes = {name: int(lines[name].split()[0]) for name in ("VmHWM", "RssFile", "RssAnon")}
    return {
        "peak": kilobytes["VmHWM"] * 1.024e-3,
        "files": kilobytes["RssFile"] * 1.024e-3,
        "anonymous": kilobytes["RssAnon"] * 1.024e-3,
    }


def measure(model: Path, threads: int) -> tuple[Figures, Figures]:
    read = read_seconds(model)
    server = servers.ours(model, threads, "--max-model-len", "512", kv_cache_bytes=KV_CACHE_BYTES)
    server.variables["PYTHONPROFILEIMPORTTIME"] = "1"
    with server:
        start = parts(server.text(), server.seconds_to_ready, read)
        process = engine_process(server)
        before = {f"{name} before": value for name, value in memory(process).items()}
        for seed in range(2):
            load.drive(server.url, servers.MODEL, LOAD, seed)
        return start, before | memory(process)


def rows(starts: list[Figures], memories: list[Figures], weight_bytes: int) -> list[Row]:
    def values(name: str) -> list[float]:
        return [start[name] for start in starts]

    rest = [s["ready"] - s["weights"] - s["our part"] - s["other imports"] for s in starts]
    limit = OVERHEAD * (weight_bytes + KV_CACHE_BYTES) + PROCESS_BYTES
    return [
        Row("start: our part", "s", values("our part"), AT_MOST, [1.0], False, 1.0),
        Row("start: of it, imports", "s", values("our imports")),
        Row("start: reading weights", "s", values("weights")),
        Row("start: other imports", "s", values("other imports")),
        Row("start: the rest of vLLM", "s", rest),
        Row("start to ready", "s", values("ready")),
        Row("peak memory", "MB", [m["peak"] for m in memories], AT_MOST, [limit / 1e6], False, 1),
    ]


def main() -> int:
    options = arguments(__doc__, runs=1).parse_args()
    model, _, _ = peers.default_model()
    measured = [measure(model, options.threads) for _ in range(options.runs)]
    starts, memories = ([pair[i] for pair in measured] for i in range(2))
    settings = {"runs": options.runs, "clients": LOAD.clients, "KV cache MB": KV_CACHE_BYTES >> 20}
    versions = peers.versions("vllm-metal", "mlx", "vllm")
    result = Result(Path(__file__).name, Machine.here(options.threads), versions, settings)
    weight_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    result.rows += rows(starts, memories, weight_bytes)
    last = ", ".join(f"{name} {value:.0f} MB" for name, value in memories[-1].items())
    result.notes.append(f"memory of the engine's process: {last}")
    result.finish(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
