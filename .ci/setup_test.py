# SPDX-License-Identifier: Apache-2.0
"""The set-up names what a machine lacks, does only what changed and resumes when interrupted."""

import json
import platform
import shutil
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import pins
import preflight
import serve
import setup_env
import uv_tool
import vllm_source


def texts(problems):
    return "\n".join(f"{problem.what} {problem.mend}" for problem in problems)


def interpreter(version=(3, 12), include="/nowhere", free_threaded=False):
    machine = platform.machine()
    return preflight.Interpreter("/usr/bin/python3", version, include, machine, free_threaded)


class TestPreflight:
    def test_missing_headers_are_named_with_their_package(self, monkeypatch):
        monkeypatch.setattr(preflight, "inspect_interpreter", lambda path: interpreter())
        monkeypatch.setattr(preflight.sys, "platform", "linux")
        monkeypatch.setattr(preflight.shutil, "which", lambda name: f"/usr/bin/{name}")
        chosen, problems = preflight.choose_interpreter(None)
        assert chosen is None
        assert "Python.h" in texts(problems)
        assert "apt-get install -y python3.12-dev" in texts(problems)

    def test_the_first_interpreter_that_fits_is_chosen(self, monkeypatch, tmp_path):
        (tmp_path / "Python.h").touch()
        found = {
            "python3": interpreter((3, 14), str(tmp_path)),
            "python3.11": interpreter((3, 11), str(tmp_path), free_threaded=True),
            "python3.12": interpreter((3, 12), "/nowhere"),
            "python3.13": interpreter((3, 13), str(tmp_path)),
        }
        monkeypatch.setattr(preflight.shutil, "which", lambda name: name)
        monkeypatch.setattr(preflight, "inspect_interpreter", found.get)
        chosen, problems = preflight.choose_interpreter(None)
        assert chosen == found["python3.13"]
        assert problems == []

    def test_an_unsuitable_python_asked_for_is_refused(self, monkeypatch):
        monkeypatch.setattr(preflight, "inspect_interpreter", lambda path: interpreter((3, 10)))
        chosen, problems = preflight.choose_interpreter("python3.10")
        assert chosen is None
        assert "PYTHON=python3.10 is 3.10; Python 3.11, 3.12 or 3.13 is needed." in texts(problems)

    def test_no_interpreter_at_all_is_left_to_uv(self, monkeypatch):
        monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
        assert preflight.choose_interpreter(None) == (None, [])

    def test_a_compiler_that_cannot_compile_is_named(self, monkeypatch, tmp_path):
        broken = tmp_path / "broken-c++"
        broken.write_text("#!/bin/sh\necho 'no <span>' >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CXX", str(broken))
        assert "broken-c++ cannot compile C++20: no <span>" in texts(preflight.check_compiler())

    def test_an_old_compiler_is_told_from_a_broken_one(self, monkeypatch, tmp_path):
        old = tmp_path / "old-c++"
        old.write_text("#!/bin/sh\necho '#error too old' >&2\nexit 1\n")
        old.chmod(0o755)
        monkeypatch.setenv("CXX", str(old))
        assert "old-c++ is too old: g++ 12" in texts(preflight.check_compiler())

    def test_a_missing_compiler_is_named(self, monkeypatch):
        monkeypatch.setenv("CXX", "no-such-compiler -m64")
        assert "no-such-compiler" in texts(preflight.check_compiler())

    def test_the_compiler_that_built_this_passes(self):
        assert preflight.check_compiler() == []

    def test_a_port_in_use_comes_with_a_free_one(self):
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            port = server.getsockname()[1]
            (problem,) = preflight.check_port(port)
        assert f"Port {port}" in problem.what
        offered = int(problem.mend.removeprefix("make serve PORT="))
        assert offered != port
        assert preflight.check_port(offered) == []

    def test_disk_is_asked_for_once_per_file_system(self, monkeypatch, tmp_path):
        monkeypatch.setattr(preflight, "DISK_NEEDED", dict.fromkeys(("linux", "darwin"), 1 << 60))
        (problem,) = preflight.check_disk(tmp_path, tmp_path / "not" / "yet", whole=True)
        assert "GiB free; set-up needs" in problem.what
        assert preflight.check_disk(tmp_path, tmp_path, whole=False) == []

    def test_googletest_is_found_where_cmake_looks(self, monkeypatch, tmp_path):
        monkeypatch.setattr(preflight, "Path", lambda name: tmp_path / str(name).lstrip("/"))
        assert "GoogleTest" in texts(preflight.check_googletest())
        package = tmp_path / "usr/lib/x86_64-linux-gnu/cmake/GTest"
        package.mkdir(parents=True)
        (package / "GTestConfig.cmake").touch()
        assert preflight.check_googletest() == []

    def test_all_problems_are_reported_together(self):
        problems = [preflight.Problem("No a.", "get a"), preflight.Problem("No b.", "get b")]
        report = preflight.report(problems)
        assert all(word in report for word in ("No a.", "get a", "No b.", "get b"))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose steps are recorded instead of done; returns the record."""
    done: list[str] = []
    venv = tmp_path / ".venv"
    for name, path in {
        "ROOT": tmp_path, "VENV": venv, "VENV_PYTHON": venv / "bin" / "python",
        "CACHE": tmp_path / ".cache", "STATE": venv / "vllm_metal_setup.json",
        "REQUIREMENTS": tmp_path / "requirements",
    }.items():  # fmt: skip
        monkeypatch.setattr(setup_env, name, path)
    monkeypatch.setattr(vllm_source, "LOCK", tmp_path / "requirements" / "vllm.txt")
    (tmp_path / "requirements").mkdir()
    for name in ("serve.txt", "dev.txt", "vllm.txt"):
        (tmp_path / "requirements" / name).write_text(name)
    for name in ("CMakeLists.txt", "VERSION", "pyproject.toml", "LICENSE", "THIRD_PARTY_LICENSES"):
        (tmp_path / name).write_text(name)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.cpp").write_text("int a;")

    def create(uv, python):
        venv.mkdir(exist_ok=True)
        done.append("venv")

    monkeypatch.setattr(setup_env, "venv_works", venv.exists)
    monkeypatch.setattr(uv_tool, "find_uv", lambda: "uv")
    monkeypatch.setattr(setup_env, "install_googletest", lambda: None)
    monkeypatch.setattr(setup_env, "check_machine", lambda *arguments: "/usr/bin/python3")
    monkeypatch.setattr(setup_env, "create_venv", create)
    monkeypatch.setattr(setup_env, "install_requirements", lambda uv, level: done.append(level))
    monkeypatch.setattr(setup_env, "install_vllm", lambda uv, key: done.append("vllm"))
    monkeypatch.setattr(setup_env, "BUILD", tmp_path / "build")

    def install_package(uv, level):
        setup_env.BUILD.mkdir(exist_ok=True)
        (setup_env.BUILD / "build.ninja").touch()
        done.append("package")

    monkeypatch.setattr(setup_env, "install_package", install_package)
    return done


class TestSteps:
    def ensure(self, done, level="serve"):
        done.clear()
        setup_env.ensure(level, [])
        return done

    def test_everything_once_then_nothing(self, checkout):
        assert self.ensure(checkout) == ["venv", "serve", "vllm", "package"]
        assert self.ensure(checkout) == []

    def test_a_changed_source_rebuilds_the_package_only(self, checkout):
        self.ensure(checkout)
        (setup_env.ROOT / "src" / "a.cpp").write_text("int b;")
        assert self.ensure(checkout) == ["package"]

    def test_a_changed_lock_installs_everything_again(self, checkout):
        self.ensure(checkout)
        (setup_env.REQUIREMENTS / "serve.txt").write_text("newer")
        assert self.ensure(checkout) == ["serve", "vllm", "package"]

    def test_serving_keeps_what_tests_need(self, checkout):
        self.ensure(checkout)
        assert self.ensure(checkout, "dev") == ["dev", "vllm", "package"]
        assert self.ensure(checkout, "serve") == []

    def test_after_make_clean_the_tests_are_built_again(self, checkout):
        self.ensure(checkout, "dev")
        assert self.ensure(checkout, "dev") == []
        shutil.rmtree(setup_env.BUILD)
        assert self.ensure(checkout, "dev") == ["package"]

    def test_an_interrupted_venv_is_begun_again(self, checkout, monkeypatch):
        working = setup_env.install_requirements

        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(setup_env, "install_requirements", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.ensure(checkout)
        monkeypatch.setattr(setup_env, "install_requirements", working)
        assert self.ensure(checkout) == ["venv", "serve", "vllm", "package"]

    def test_an_interrupted_build_resumes_there(self, checkout, monkeypatch):
        working = setup_env.install_package

        def interrupted(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(setup_env, "install_package", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.ensure(checkout)
        monkeypatch.setattr(setup_env, "install_package", working)
        assert self.ensure(checkout) == ["package"]

    def test_a_damaged_record_is_no_record(self, checkout):
        self.ensure(checkout)
        setup_env.STATE.write_text("{")
        assert self.ensure(checkout) == ["serve", "vllm", "package"]

    def test_a_second_server_on_a_port_is_refused_without_set_up_too(self, checkout):
        self.ensure(checkout)
        with pytest.raises(setup_env.SetupError, match="in use"):
            setup_env.ensure("serve", [preflight.Problem("Port 8000 is in use.", "PORT=8001")])


class TestVllmSource:
    def write(self, folder, text):
        (folder / "setup.py").write_text(text)
        return folder

    def test_each_patch_is_applied(self, tmp_path):
        text = "\n".join(old for old, _ in vllm_source.PATCHES)
        vllm_source.patch(self.write(tmp_path, text))
        patched = (tmp_path / "setup.py").read_text()
        assert all(new in patched and old not in patched for old, new in vllm_source.PATCHES)

    @pytest.mark.parametrize("times", [0, 2])
    def test_a_source_that_changed_is_refused(self, tmp_path, times):
        first, *others = (old for old, _ in vllm_source.PATCHES)
        source = self.write(tmp_path, "\n".join([*[first] * times, *others]))
        with pytest.raises(setup_env.SetupError, match=f"{times} times, expected once"):
            vllm_source.patch(source)

    def test_the_locked_version_is_the_one_that_is_built(self):
        assert {vllm_source.locked_version()} == pins.found("vllm")["requirements/vllm.txt"]


class TestServe:
    def test_a_directory_is_served_offline_under_its_name(self, tmp_path):
        model = tmp_path / "tiny-llama"
        model.mkdir()
        assert serve.find_model(str(model)) == (str(model), "tiny-llama", True)
        assert serve.server_environment(local=True)["HF_HUB_OFFLINE"] == "1"

    def test_a_hub_name_may_be_fetched(self, monkeypatch):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        assert serve.find_model("org/model") == ("org/model", "org/model", False)
        assert "HF_HUB_OFFLINE" not in serve.server_environment(local=False)

    @pytest.mark.parametrize("name", ["/no/such/model", "./model", "missing.gguf"])
    def test_a_missing_path_is_not_taken_for_a_hub_name(self, name):
        with pytest.raises(setup_env.SetupError, match="does not exist"):
            serve.find_model(name)

    def test_the_server_keeps_quiet_and_finds_the_plugin(self, monkeypatch):
        monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
        environment = serve.server_environment(local=False)
        assert environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
        assert "VLLM_TARGET_DEVICE" not in environment

    @pytest.mark.parametrize("port", ["http", "0", "65536", "-1"])
    def test_a_bad_port_is_named(self, monkeypatch, port):
        monkeypatch.setenv("PORT", port)
        with pytest.raises(setup_env.SetupError, match=f"PORT={port} is not a port"):
            serve.read_port()

    def test_announced_body_is_json(self, capsys):
        serve.announce("SmolLM2-135M-Instruct", 8000)
        body = capsys.readouterr().err.split("-d '")[1].split("'")[0]
        assert json.loads(body)["model"] == "SmolLM2-135M-Instruct"
