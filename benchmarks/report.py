# SPDX-License-Identifier: Apache-2.0
"""Run all benchmarks, or merge what they wrote: one table, one JSON file, one plot.

`report.py --run` is `make bench`. Results lie in build/bench: a file for each script, results.json
with all of them and results.png with the ratios.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peers
from measure import AT_MOST, FORMAT, ROOT, table

FOLDER = ROOT / "build" / "bench"
# In the order in which they run, with what keeps all of them near ten minutes on two cores. Not
# bench_step, which compares with nobody.
SCRIPTS = {
    "bench_generate.py": [],
    "bench_torch.py": [],
    "bench_serve.py": [],
    "bench_start.py": [],
    "bench_host.py": [],
    "bench_sampler.py": ["--quick"],
}


def run_all(scripts: list[str], arguments: list[str]) -> list[str]:
    """Run each script in a process of its own; return those that failed."""
    failed = []
    for name in scripts:
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        file = FOLDER / Path(name).with_suffix(".json").name
        file.unlink(missing_ok=True)
        script = Path(__file__).with_name(name)
        command = [sys.executable, script, "--json", file, *SCRIPTS[name], *arguments]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
        print(f"    {time.monotonic() - started:.0f} s", flush=True)
    return failed


def read_results(folder: Path) -> list[dict[str, Any]]:
    results = []
    for name in SCRIPTS:
        file = folder / Path(name).with_suffix(".json").name
        if file.exists():
            results.append(json.loads(file.read_text()))
            if results[-1]["format"] != FORMAT:
                raise SystemExit(f"{file} is of another version of these scripts; remove it.")
    return results


def warn_of_mixture(results: list[dict[str, Any]]) -> None:
    for key in ("commit", "machine"):
        values = {
            json.dumps({k: v for k, v in result[key].items() if k != "threads"})
            if key == "machine"
            else result[key]
            for result in results
        }
        if len(values) > 1:
            print(f"These results are of more than one {key}: {', '.join(sorted(values))}")


def aim(row: dict[str, Any]) -> str:
    if row["peer"] == AT_MOST:
        return f"at most {row['theirs_median']:.4g} {row['unit']}"
    return f"at least {row['target']:g} x {row['peer']}"


def plot(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draw ratios as parts of their targets, so that one line is what all of them must reach."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    rows = rows[::-1]
    values = [row["ratio"] / row["target"] for row in rows]
    names = [f"{row['what']}\n{aim(row)}" for row in rows]
    colours = ["#2a7f62" if value >= 1 else "#c0392b" for value in values]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(rows)), layout="constrained")
    widths = [value - 1 for value in values]
    bars = axes.barh(range(len(rows)), widths, left=1, color=colours, height=0.7)
    labels = [f"{row['ratio']:.2f} x" for row in rows]
    axes.bar_label(bars, labels, padding=4, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=7.5)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(0.5, *values) / 1.6, max(2, *values) * 1.6)
    axes.margins(y=0.02)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("ratio as part of its target (black line); at the bars: ours to the peer")
    axes.set_title(title, fontsize=9)
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="run the scripts first")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="have the scripts run quickly")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = []
    if options.run:
        for line in filter(None, map(peers.missing, peers.peer_env.PEERS)):
            print(line)
        failed = run_all(options.only, ["--quick"] if options.quick else [])
    results = read_results(FOLDER)
    if not results:
        raise SystemExit(f"There is no result in {FOLDER}; run: make bench")
    report(results)
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def report(results: list[dict[str, Any]]) -> None:
    rows = [row for result in results for row in result["rows"] if row["met"] is not None]
    print(f"\n{table(rows)}")
    warn_of_mixture(results)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    machine, commit = results[0]["machine"], results[0]["commit"]
    title = f"vLLM Metal {commit}, {machine['processor']}, {machine['threads']} threads"
    plot(rows, title, FOLDER / "results.png")
    print(f"{FOLDER / 'results.json'}\n{FOLDER / 'results.png'}")


if __name__ == "__main__":
    sys.exit(main())
