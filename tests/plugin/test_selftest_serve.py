# SPDX-License-Identifier: Apache-2.0
"""What the self-test finds wrong with a server."""

import sys
from pathlib import Path

import pytest
from vllm_metal.selftest import default_model, serve_checks
from vllm_metal.selftest.checks import FAILED, PASSED, SKIPPED, Options, run_check

from tests.plugin import selftest_server


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Run the checks on a server with a fault; return their results by name."""
    monkeypatch.setattr(serve_checks.Server, "start_seconds", 20)

    def run(fault: str, **options):
        never_ends = fault in ("does not end", "leaves a child")
        monkeypatch.setattr(serve_checks.Server, "stop_seconds", 1 if never_ends else 20)
        monkeypatch.setattr(serve_checks, "_CHILDREN_SECONDS", 0.5 if never_ends else 20)
        command = [sys.executable, selftest_server.__file__, fault]
        monkeypatch.setattr(serve_checks, "vllm_program", lambda: command)
        asked = Options(**{"work": str(tmp_path), "model": str(tmp_path), **options})
        return {check.name: run_check(check) for check in serve_checks.checks(asked)}

    return run


def test_a_good_server_passes(serve):
    results = serve("nothing")
    assert {result.status for result in results.values()} == {PASSED}
    assert results["serve/paged"].figures["answer"] == selftest_server.ANSWER


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        ("does not start", "the server ended with exit code 1\nlibmlx is missing"),
        ("refuses", 'status 400: {"error": "no such model"}'),
        ("streams another", "streamed: 'Paris, of cause.', in one piece: 'Paris, of course.'"),
        ("breaks off", "the stream ended without [DONE]"),
        ("says nothing", "the answer is ' '"),
        ("does not end", "no end in 1 s after SIGTERM"),
        ("ends badly", "exit code 7 after SIGTERM"),
        ("leaves a child", "a process is left of the server"),
    ],
)
def test_faults_are_found(serve, fault, detail):
    results = serve(fault)
    assert results["serve/managed"].status == FAILED
    assert detail in results["serve/managed"].detail
    assert results["serve/same_answers"].status == SKIPPED


def test_a_server_that_does_not_answer_is_given_up(serve, monkeypatch):
    monkeypatch.setattr(serve_checks.Server, "start_seconds", 1)
    assert "did not answer in 1 s" in serve("does not answer")["serve/managed"].detail


def test_modes_that_differ_are_found(serve):
    results = serve("differs when paged")
    assert results["serve/managed"].status == results["serve/paged"].status == PASSED
    assert results["serve/same_answers"].status == FAILED
    assert "I think" in results["serve/same_answers"].detail


def test_no_serve_is_a_reason(serve):
    results = serve("nothing", serve=False)
    assert {result.status for result in results.values()} == {SKIPPED}
    assert results["serve/managed"].detail == "--no-serve"


def test_offline_the_default_model_has_to_be_there(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(default_model, "cache_directory", lambda: Path(tmp_path / "empty"))
    result = serve("nothing", model=None, offline=True)["serve/managed"]
    assert result.status == SKIPPED
    assert "is not on this machine, and --offline forbids to fetch it" in result.detail


def test_a_model_that_cannot_be_fetched_is_a_reason(serve, monkeypatch, tmp_path):
    def fail():
        raise RuntimeError("no network")

    monkeypatch.setattr(default_model, "cache_directory", lambda: Path(tmp_path / "empty"))
    monkeypatch.setattr(default_model, "ensure_default_model", fail)
    result = serve("nothing", model=None)["serve/managed"]
    assert result.status == SKIPPED
    assert "could not be fetched: no network" in result.detail
