# SPDX-License-Identifier: Apache-2.0
"""Pins that differ are named; a release has what install.sh looks for, with true checksums."""

import hashlib
import re
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import pins
import release_files
from checkout import ROOT, SetupError

VERSION = (ROOT / "VERSION").read_text().strip()
FILES = (
    *(
        f"vllm_metal-{VERSION}-{python}-{platform}.whl"
        for python in ("cp311-cp311", "cp312-abi3")
        for platform in ("macosx_14_0_arm64", "manylinux_2_35_x86_64", "manylinux_2_35_aarch64")
    ),
    f"vllm_metal-{VERSION}.tar.gz",
    "vllm-0.32.0+empty-py3-none-any.whl",
)

(PINNED,) = pins.found("mlx")["pyproject.toml"]  # which the nightly run changes
OTHER = f"{PINNED}.1"


def wheel(folder, requirement):
    path = folder / "vllm_metal-0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm_metal-0.dist-info/METADATA", f"Requires-Dist: {requirement}\n")
    return path


class TestPins:
    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        for path in (p for places in pins.PLACES.values() for p in places):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text((ROOT / path).read_text())
        for path in pins.LOCKS["mlx"]:
            (tmp_path / path).write_text((ROOT / path).read_text())
        monkeypatch.setattr(pins, "ROOT", tmp_path)
        monkeypatch.setattr(pins, "REQUIREMENTS", tmp_path / "requirements")
        return tmp_path

    def test_they_agree_here(self, tmp_path):
        pins.check([wheel(tmp_path, f"mlx[cpu]=={PINNED}; sys_platform == 'linux'")])

    @pytest.mark.parametrize("place", pins.PLACES["mlx"])
    def test_one_that_differs_is_named(self, checkout, place):
        path = checkout / place
        path.write_text(path.read_text().replace(PINNED, OTHER, 1))
        with pytest.raises(SetupError, match=f"{re.escape(place)}: .*{re.escape(OTHER)}"):
            pins.check([])

    @pytest.mark.parametrize("requirement", [f"mlx=={OTHER}", f"mlx>={PINNED}"])
    def test_a_wheel_for_another_mlx_is_refused(self, tmp_path, requirement):
        with pytest.raises(SetupError, match=re.escape("vllm_metal-0-py3-none-any.whl")):
            pins.check([wheel(tmp_path, requirement)])

    def test_a_version_is_written_into_all_places(self, checkout):
        pins.set_version("mlx", "1.2.3")
        assert all(pins.found("mlx")[place] == {"1.2.3"} for place in pins.PLACES["mlx"])
        assert "mlx[cuda13]==1.2.3; sys_platform" in (checkout / "pyproject.toml").read_text()

    def test_a_new_vllm_comes_with_its_hashes(self, checkout, monkeypatch):
        locked = "vllm==1.2.3 \\\n    --hash=sha256:00\n"
        monkeypatch.setattr(pins, "resolve", lambda requirement, *options: locked)
        pins.set_version("vllm", "1.2.3")
        lock = (checkout / "requirements" / "vllm.txt").read_text()
        assert lock.startswith("# vLLM's source distribution")
        assert lock.endswith(locked)

    def test_what_is_no_version_is_refused(self):
        with pytest.raises(SetupError, match="newest is not a version"):
            pins.set_version("mlx", "newest")


class TestReleaseFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        for name in FILES:
            (tmp_path / name).write_text(name)
        return tmp_path

    def test_the_checksums_are_those_of_all_files(self, folder):
        release_files.complete("owner/name", folder)
        lines = (folder / "SHA256SUMS").read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
        more = {"serve.txt", "torch-backend.txt", "install.sh", "vllm-metal.rb"}
        assert set(sums) == {*FILES, *more}
        for name, digest in sums.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        before = (folder / "SHA256SUMS").read_text()
        release_files.complete("owner/name", folder)
        assert (folder / "SHA256SUMS").read_text() == before

    def test_the_installer_knows_its_repository(self, folder):
        release_files.complete("owner/name", folder)
        script = (folder / "install.sh").read_text()
        assert "REPOSITORY=${VLLM_METAL_REPOSITORY:-owner/name}\n" in script
        assert script.count("\n") == (ROOT / "install.sh").read_text().count("\n")

    def test_the_formula_names_the_installer_by_its_checksum(self, folder):
        release_files.complete("owner/name", folder)
        formula = (folder / "vllm-metal.rb").read_text()
        assert hashlib.sha256((folder / "install.sh").read_bytes()).hexdigest() in formula
        assert f"releases/download/v{VERSION}/install.sh" in formula
        assert not re.search("@[A-Z0-9]+@", formula)

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_that_is_missing_is_named(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(SetupError, match="lacks"):
            release_files.complete("owner/name", folder)

    @pytest.mark.parametrize("repository", ["name", "a/b/c", "a b/c", "https://x/y"])
    def test_what_is_no_repository_is_refused(self, folder, repository):
        with pytest.raises(SetupError, match="is not OWNER/NAME"):
            release_files.complete(repository, folder)
