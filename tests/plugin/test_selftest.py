# SPDX-License-Identifier: Apache-2.0
"""What the self-test makes of checks that pass, fail, crash and hang, and what it reports."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from vllm_metal import _core, cli
from vllm_metal.selftest import memory_checks, models_checks, tiny_models, traffic
from vllm_metal.selftest.checks import FAILED, PASSED, SKIPPED, Options, Result, matches, run_check
from vllm_metal.selftest.engine import torch_device
from vllm_metal.selftest.groups import GROUPS, wanted_groups
from vllm_metal.selftest.report import Report, without_user
from vllm_metal.selftest.supervisor import MOST_CRASHES, GroupRun

from tests.plugin import selftest_trial as trial

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def results():
    """The results of all trial checks by name."""
    found = []
    GroupRun(trial.GROUP, Options(work=""), [], found.append, command=trial.command).run()
    names = [result.name for result in found]
    assert len(names) == len(set(names)), "each check has one result"
    assert set(names) == {check.name for check in trial.checks(Options(work=""))}
    return {result.name.removeprefix("trial/"): result for result in found}


def test_results_are_what_the_checks_found(results):
    assert results["passes"].status == PASSED
    assert (results["passes"].worst_error, results["passes"].figures) == (0.5, {"answer": 42})
    assert results["is_over"].status == results["is_nan"].status == FAILED
    assert (results["fails"].status, results["fails"].detail) == (FAILED, "it is wrong")
    assert (results["raises"].status, results["raises"].detail) == (FAILED, "KeyError: 'nothing'")
    assert (results["skips"].status, results["skips"].detail) == (SKIPPED, "there is no reason")
    assert results["prints"].status == PASSED


@pytest.mark.parametrize(
    ("name", "detail"),
    [("aborts", "SIGABRT"), ("hangs", "no end after 3 s"), ("exits", "exit code 3")],
)
def test_a_check_that_ends_its_process_fails_and_the_rest_goes_on(results, name, detail):
    assert results[name].status == FAILED
    assert detail in results[name].detail
    assert results["after_abort"].status == results["after_hang"].status == PASSED


def test_a_crash_shows_where(results):
    assert "Fatal Python error: Aborted" in results["aborts"].detail


def test_a_group_that_does_not_start_fails():
    found = []
    broken = [sys.executable, "-c", "raise SystemExit('no libmlx')"]
    GroupRun(trial.GROUP, Options(work=""), [], found.append, command=lambda request: broken).run()
    (result,) = found
    assert (result.name, result.status) == ("trial", FAILED)
    assert "exit code 1\nno libmlx" in result.detail


def test_a_group_that_crashes_again_and_again_is_left():
    """Each check has its result all the same."""
    found = []
    script = """
import json, os, sys
request = json.loads(sys.argv[1])
names = [f"trial/{i}" for i in range(9)]
print(json.dumps({"names": names}))
(name, *_) = [name for name in names if name not in request["skip"]]
print(json.dumps({"started": name}), flush=True)
os._exit(1)
"""

    def command(request: dict) -> list[str]:
        return [sys.executable, "-c", script, json.dumps(request)]

    GroupRun(trial.GROUP, Options(work=""), [], found.append, command=command).run()
    assert [result.name for result in found] == [f"trial/{i}" for i in range(9)]
    assert all(result.status == FAILED for result in found)
    details = [result.detail.splitlines()[0] for result in found]
    assert details.count("the process ended with exit code 1") == MOST_CRASHES
    assert sum(detail.startswith("not run") for detail in details) == 9 - MOST_CRASHES


def test_a_process_that_fails_at_its_end_is_a_failure():
    found = []
    script = (
        "print('{\"names\": []}'); print('{\"ended\": true}', flush=True); import os; os.abort()"
    )
    command = [sys.executable, "-c", script]
    GroupRun(trial.GROUP, Options(work=""), [], found.append, command=lambda request: command).run()
    (result,) = found
    assert (result.name, result.status) == ("trial/exit", FAILED)
    assert "SIGABRT" in result.detail


def test_sigterm_ends_what_was_started():
    """The check's process is in a group of its own, which no signal of a terminal reaches."""
    script = """
from tests.plugin import selftest_trial as trial
from vllm_metal import selftest
from vllm_metal.selftest.checks import Options
from vllm_metal.selftest.supervisor import GroupRun

with selftest.ended_by_sigterm():
    say = lambda name: print(name, flush=True)
    GroupRun(trial.GROUP, Options(work=""), ["trial/hangs"], print, say, trial.command).run()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "trial/hangs\n"
        (child,) = psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert not child.is_running()


@pytest.mark.parametrize(
    ("patterns", "meant"),
    [
        ([], True),
        (["kernels"], True),
        (["kernels/cpu"], True),
        (["kernels/cpu/rms_norm/float16"], True),
        (["*/float16"], True),
        (["kernels/cp"], False),
        (["models", "kernels/gpu"], False),
    ],
)
def test_checks_are_meant_by_name_beginning_or_pattern(patterns, meant):
    assert matches("kernels/cpu/rms_norm/float16", patterns) is meant


def test_groups_of_patterns():
    assert [group.name for group in wanted_groups(["memory", "kernels/*"])] == ["kernels", "memory"]
    assert wanted_groups([]) == list(GROUPS)
    assert wanted_groups(["*/float16"]) == list(GROUPS)
    with pytest.raises(ValueError, match="--only kernel must begin with one of platform, kernels"):
        wanted_groups(["kernel"])


FACTS = {
    "system": "Darwin 24",
    "macos": "15.1",
    "machine": "arm64",
    "processor": "Apple M3",
    "cores": 8,
    "memory_bytes": 8 << 30,
    "python": "3.12",
    "versions": {"vllm": None},
}


def report_of(*results: Result) -> Report:
    return Report(FACTS, {}, list(results))


def test_report_passes_when_something_passed_and_nothing_failed():
    passed, skipped = Result("a/b", PASSED), Result("a/c", SKIPPED, "no GPU")
    assert report_of(passed, skipped).passed
    assert not report_of(passed, Result("a/d", FAILED)).passed
    assert not report_of(skipped).passed
    assert not report_of().passed


def test_report_says_what_failed_and_why_what_was_skipped():
    report = report_of(
        Result("a/b/c", PASSED, worst_error=1.0, tolerance=4.0),
        Result("a/b/d", FAILED, "off by one", 8.0, 4.0),
        Result("a/gpu", SKIPPED, "no GPU"),
    )
    text = report.text(every_check=True)
    for part in (
        "Apple M3",
        "macOS 15.1",
        "vllm not installed",
        "FAILED a/b/d: error 8, tolerance 4. off by one",
        "Skipped: no GPU: a/gpu",
        "200% of tolerance",
        "Self-test FAILED: 1 passed, 1 failed, 1 skipped",
    ):
        assert part in text
    assert "a/b/c" not in report.text(every_check=False)


def test_report_is_json_whatever_the_numbers():
    report = report_of(Result("a/b", FAILED, worst_error=float("inf"), figures={"x": float("nan")}))
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["schema"] == 1
    assert data["summary"] == {"passed": 0, "failed": 1, "skipped": 0}
    assert data["checks"][0]["worst_error"] == "inf"


def test_report_names_no_user(monkeypatch):
    monkeypatch.setenv("HOME", "/srv/people/ada")
    text = "/srv/people/ada/.venv and /Users/grace/x, /home/linus: /srv/people/ada2"
    data = without_user({"a": [text]})
    assert data == {"a": ["~/.venv and /Users/-/x, /home/-: /srv/people/ada2"]}


def test_tiny_models_are_of_supported_architectures():
    architectures = {model.architecture for model in tiny_models.MODELS}
    assert architectures <= set(_core.supported_architectures())
    assert len(architectures) > 1


def test_models_that_differ_a_little_are_told_apart(tmp_path):
    """A weight of one layer a tenth larger is more than float32 rounds."""
    model = tiny_models.write_model(tiny_models.MODELS[0], tmp_path)
    expected = traffic.logits_of_traffic(model, "float32", "managed")
    paged = traffic.logits_of_traffic(model, "float32", "paged")
    assert models_checks.compare({"float32/paged": paged}, expected).passed
    tensors = tiny_models.read_tensors(model / "model.safetensors")
    tensors["model.layers.2.self_attn.v_proj.weight"][0] *= 1.1
    tiny_models.write_tensors(model / "model.safetensors", tensors, "float32")
    changed = traffic.logits_of_traffic(model, "float32", "managed")
    assert not models_checks.compare({"float32/managed": changed}, expected).passed


def test_a_nan_among_logits_is_found():
    expected = np.ones((2, 3), np.float32)
    broken = expected.copy()
    broken[1, 1] = np.nan
    runs = {"float32/managed": broken, "bfloat16/managed": expected}
    finding = models_checks.compare(runs, expected)
    assert not finding.passed
    assert finding.detail == "worst in float32/managed"


GIB = 1 << 30
MAC = {
    "backend": "metal",
    "total_memory": 4 * GIB,
    "available_memory": 3 * GIB,
    "working_set": 3 * GIB,
}


def memory_check(name: str) -> Result:
    (check,) = (c for c in memory_checks.checks(Options(work="")) if c.name == f"memory/{name}")
    return run_check(check)


def test_a_device_with_more_memory_than_it_has_is_found(monkeypatch):
    monkeypatch.setattr(_core, "device_info", lambda: MAC | {"available_memory": 5 * GIB})
    result = memory_check("device")
    assert result.status == FAILED
    assert f"total {4 * GIB}, available {5 * GIB}" in result.detail


def test_a_plan_of_the_impossible_is_found(monkeypatch):
    plan = SimpleNamespace(table=lambda: "a table")
    monkeypatch.setattr(_core, "plan_memory", lambda **_: plan)
    result = memory_check("refusals")
    assert result.status == FAILED
    assert "was taken: a table" in result.detail


def test_the_wired_limit_of_a_mac(monkeypatch):
    monkeypatch.setattr(_core, "device_info", lambda: MAC)
    assert memory_check("wired_limit").status == PASSED
    plan = SimpleNamespace(wired_limit=MAC["working_set"])
    monkeypatch.setattr(_core, "plan_memory", lambda **_: plan)
    result = memory_check("wired_limit")
    assert result.status == FAILED
    assert f"{3 * GIB} bytes would be wired" in result.detail


@pytest.mark.parametrize(("has_mps", "device"), [(True, "mps"), (False, "cpu")])
def test_torchs_device_on_a_mac(monkeypatch, has_mps, device):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: has_mps)
    assert torch_device("metal") == device


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "/nowhere"], "--model /nowhere must be a directory with a config.json"),
        (["--json", "/nowhere/x.json"], "/nowhere/x.json must be in a folder that exists"),
        (["--only", "nothing"], "--only nothing must begin with one of"),
    ],
)
def test_what_cannot_be_is_refused_at_once(capsys, arguments, message):
    assert cli.main(["selftest", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_sizes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["selftest", "--pool-limit", "much"])
    assert "much must be a size of at least 1M" in capsys.readouterr().err


@pytest.mark.slow
def test_quick_run_on_the_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_MLX_DEVICE", "cpu")
    file, text = tmp_path / "report.json", tmp_path / "report.txt"
    wanted = ["platform", "kernels", "cache", "models", "memory", "bench"]
    arguments = ["--quick", "--offline", "--json", str(file), "--text", str(text)]
    code = cli.main(["selftest", *arguments, "--only", *wanted])
    output = capsys.readouterr().out
    assert code == 0, output
    report = json.loads(file.read_text())
    assert report["passed"]
    assert report["summary"]["failed"] == 0
    assert report["platform"]["device"]["backend"] == "cpu"
    checks = {check["name"]: check for check in report["checks"]}
    assert {name.split("/")[0] for name in checks} == set(wanted)
    assert set(checks["bench/torch"]["figures"]["ratios"]) == {"prefill", "decode"}
    for group in ("kernels", "cache", "models"):
        assert checks[f"{group}/gpu"]["status"] == SKIPPED
        assert checks[f"{group}/gpu"]["detail"] == "VLLM_MLX_DEVICE is cpu"
        assert sum(n.startswith(f"{group}/cpu/") for n in checks) > 1
    assert output.splitlines()[-1].startswith("Self-test passed: ")
    assert str(Path.home()) not in file.read_text() + text.read_text()
    assert "kernels/cpu/rms_norm/float32" in text.read_text()
