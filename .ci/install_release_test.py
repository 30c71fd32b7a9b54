# SPDX-License-Identifier: Apache-2.0
"""install.sh piped into bash: what it takes from a release, checks, and builds if it is missing."""

import functools
import http.server
import re
import shutil
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from install_sandbox import LINUX_WHEEL, MAC_311, MAC_WHEEL, VLLM, WHOLE, Sandbox, mac


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


INSTALLED = {  # facts, wheels that are installed, what is built
    "macOS 14": (mac("14.0"), {MAC_WHEEL, VLLM}, []),
    "macOS 26, no tools": (mac("26.0", FAKE_XCODE="2"), {MAC_WHEEL, VLLM}, []),
    "Python 3.13": (mac("15.0", FAKE_PYTHON_TAG="313"), {MAC_WHEEL, VLLM}, []),
    "Python 3.11": (mac("15.0", FAKE_PYTHON_TAG="311"), {MAC_311, VLLM}, []),
    "Linux": ({}, {LINUX_WHEEL, VLLM}, []),
    "no wheel for it": (
        {"FAKE_MACHINE": "aarch64"}, {"vllm-metal-0-py3-none-any.whl", VLLM}, ["vllm-metal"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INSTALLED)
def test_the_latest_release_is_installed_when_piped(sandbox, name):
    facts, wheels, built = INSTALLED[name]
    sandbox.release("0.2.0", *WHOLE)
    sandbox.tag("0.2.0")
    code, output = sandbox.run(piped=True, **facts)
    assert code == 0, output
    assert set(re.findall("wheel (.*)", sandbox.log)) == wheels
    assert re.findall("build (.*)", sandbox.log) == built
    assert sandbox.installed().startswith("release 0.2.0")


def test_a_tag_without_files_is_built_from_source(sandbox):
    sandbox.tag("0.2.0")
    code, output = sandbox.run("--version", "v0.2.0", piped=True)
    assert code == 0, output
    assert re.findall("build (.*)", sandbox.log) == ["vllm-metal", "vllm"]


@pytest.mark.parametrize(
    ("arguments", "version"),
    [(["--version", "0.2.0"], "0.2.0"), (["--version=v0.1.9"], "0.1.9")],
)
def test_a_checkout_installs_the_release_that_is_asked_for(sandbox, arguments, version):
    sandbox.release("0.1.9", *(name.replace("0.2.0", "0.1.9") for name in WHOLE))
    sandbox.release("0.2.0", *WHOLE)
    code, output = sandbox.run(*arguments)
    assert code == 0, output
    wheels = {LINUX_WHEEL.replace("0.2.0", version), VLLM}
    assert set(re.findall("wheel (.*)", sandbox.log)) == wheels
    assert sandbox.installed().startswith(f"release {version}")


@pytest.mark.parametrize("piped", [False, True])
def test_from_source_builds_what_the_release_has_a_wheel_for(sandbox, piped):
    sandbox.release("0.2.0", *WHOLE)
    sandbox.tag("0.2.0")
    code, output = sandbox.run("--version", "0.2.0", "--from-source", piped=piped)
    assert code == 0, output
    assert re.findall("build (.*)", sandbox.log) == ["vllm-metal"]
    assert LINUX_WHEEL not in sandbox.log


def test_the_source_among_the_files_is_preferred_and_checked(sandbox):
    sandbox.release("0.2.0", *WHOLE, "vllm_metal-0.2.0.tar.gz")
    code, output = sandbox.run("--from-source", piped=True)
    assert code == 1
    assert "vllm_metal-0.2.0.tar.gz cannot be unpacked" in output  # this one is no archive
    assert "/releases/download/v0.2.0/vllm_metal-0.2.0.tar.gz" in sandbox.log
    assert sandbox.left() == []


def test_from_source_needs_a_compiler_when_piped(sandbox):
    sandbox.release("0.2.0", *WHOLE)
    code, output = sandbox.run("--from-source", piped=True, **mac("14.0", FAKE_XCODE="2"))
    assert code == 1
    assert "xcode-select --install" in output
    assert sandbox.log == ""


def test_a_release_without_a_wheel_needs_a_compiler(sandbox):
    sandbox.release("0.2.0", VLLM)
    code, output = sandbox.run(piped=True, **mac("14.0", FAKE_XCODE="2"))
    assert code == 1
    assert "xcode-select --install" in output
    assert sandbox.left() == []


@pytest.mark.parametrize("spoilt", [MAC_WHEEL, VLLM, "serve.txt"])
def test_a_file_with_another_checksum_is_refused(sandbox, spoilt):
    (sandbox.release("0.2.0", *WHOLE) / spoilt).write_text("other")
    code, output = sandbox.run(piped=True, **mac("15.0"))
    assert code == 1
    assert f"{spoilt} has the checksum" in output
    assert "wheel " not in sandbox.log
    assert sandbox.left() == []


PIPED_FAILURES = {
    "no network": ({"FAKE_NETWORK": "no"}, [], "Check the network"),
    "no network, version": ({"FAKE_NETWORK": "no"}, ["--version", "0.2.0"], "cannot be reached"),
    "no such version": ({}, ["--version", "9.9"], "neither a release nor a tag v9.9"),
    "no repository": ({"VLLM_METAL_REPOSITORY": ""}, [], "set VLLM_METAL_REPOSITORY=owner/name"),
}


@pytest.mark.parametrize("name", PIPED_FAILURES)
def test_releases_that_cannot_be_had(sandbox, name):
    facts, arguments, message = PIPED_FAILURES[name]
    sandbox.release("0.2.0", *WHOLE)
    code, output = sandbox.run(*arguments, piped=True, **facts)
    assert code == 1
    assert message in output
    assert sandbox.left() == []


def test_an_nvidia_gpu_brings_cuda(sandbox):
    sandbox.release("0.2.0", *WHOLE)
    _, output = sandbox.run("--dry-run", piped=True, FAKE_DRIVER="580.65.06")
    assert "uninstall --quiet --python" in output
    assert r"mlx\[cuda13\]" in output
    code, output = sandbox.run("--dry-run", piped=True, FAKE_DRIVER="550.54.15")
    assert code == 0
    assert "driver 550.54.15 is too old" in output
    assert "cuda13" not in output


@pytest.mark.parametrize("has_wheel", [True, False])
def test_the_torch_backend_is_vllms_wheel_or_its_source(sandbox, has_wheel):
    sandbox.release("0.2.0", *WHOLE)
    sandbox.tag("0.2.0")
    name = "vllm-0.32.0%2Bcpu-cp312-cp312-macosx_11_0_arm64.whl"
    folder = sandbox.web / "github.com/vllm-project/vllm/releases/download/v0.32.0"
    folder.mkdir(parents=True)
    if has_wheel:
        (folder / name).touch()
    code, output = sandbox.run("--torch-backend", piped=True, **mac("15.0"))
    assert code == 0, output
    assert ("build vllm-cpu" in sandbox.log) == (not has_wheel)
    assert ("wheel vllm-0.32.0+cpu" in sandbox.log) == has_wheel
    assert f"wheel {VLLM}" not in sandbox.log
    assert "numba" in sandbox.log


def test_the_download_of_vllms_wheel_is_limited(sandbox):
    sandbox.release("0.2.0", *WHOLE)
    code, output = sandbox.run("--dry-run", "--torch-backend", piped=True)
    assert code == 0, output
    (line,) = (line for line in output.splitlines() if "/vllm-project/vllm/" in line)
    assert "--max-time 600 " in line


# --- the real curl, and a server in GitHub's place -----------------------------------------------


class Releases(http.server.SimpleHTTPRequestHandler):
    """The sandbox's web; the page `latest` leads to the release that it names, as GitHub's does."""

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if self.path.endswith("/releases/latest") and path.is_file():
            self.send_response(302)
            self.send_header("Location", path.read_text().split("example.test")[1])
            self.end_headers()
        elif "/releases/tag/" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(sandbox):
    """The sandbox with the machine's curl; the variable that leads to the server."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    (sandbox.bin / "curl").unlink()
    (sandbox.bin / "curl").symlink_to(curl)
    handler = functools.partial(Releases, directory=sandbox.web / "example.test")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/owner/name"
        yield {"VLLM_METAL_REPOSITORY": address, "no_proxy": "127.0.0.1"}
        server.shutdown()


def test_curl_follows_to_the_latest_release_and_fetches_it(sandbox, served):
    sandbox.release("0.2.0", *WHOLE)
    code, output = sandbox.run(piped=True, **served)
    assert code == 0, output
    assert set(re.findall("wheel (.*)", sandbox.log)) == {LINUX_WHEEL, VLLM}


def test_curl_fetches_what_is_refused_for_its_checksum(sandbox, served):
    (sandbox.release("0.2.0", *WHOLE) / LINUX_WHEEL).write_text("other")
    code, output = sandbox.run(piped=True, **served)
    assert code == 1
    assert f"{LINUX_WHEEL} has the checksum" in output
    assert sandbox.left() == []


def test_curl_finds_no_release_but_the_tag(sandbox, served):
    sandbox.tag("0.2.0")
    code, output = sandbox.run("--version", "0.2.0", piped=True, **served)
    assert code == 0, output
    assert re.findall("build (.*)", sandbox.log) == ["vllm-metal", "vllm"]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "the latest release was not found"),
    (["--version", "0.2.0"], "neither a release nor a tag v0.2.0"),
])  # fmt: skip
def test_curl_finds_nothing(sandbox, served, arguments, message):
    code, output = sandbox.run(*arguments, piped=True, **served)
    assert code == 1
    assert message in output
    assert sandbox.left() == []
