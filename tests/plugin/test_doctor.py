# SPDX-License-Identifier: Apache-2.0
import json
from importlib.metadata import EntryPoint, entry_points

import pytest
from vllm_metal import cli, doctor


@pytest.fixture(autouse=True)
def healthy_installation(fake_core, monkeypatch):
    """Everything installed as the fake core wants it, and no variables that matter."""
    for name in ("VLLM_TARGET_DEVICE", "VLLM_PLUGINS", "VLLM_WORKER_MULTIPROC_METHOD"):
        monkeypatch.delenv(name, raising=False)
    versions = {"vllm": "0.32.0", "mlx": fake_core.mlx_version}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, "1.0"))
    return versions


def examine(capsys, *arguments):
    """Run the command; returns its exit code and output."""
    code = cli.main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_healthy(capsys):
    code, output = examine(capsys)
    assert code == 0
    for part in ("vllm_metal.platform.MetalPlatform", "Fake device (cpu)", "0.32.0", "8.00 GiB"):
        assert part in output
    assert output.endswith("Ready to serve.\n")


def test_json(capsys):
    code, output = examine(capsys, "--json")
    report = json.loads(output)
    assert code == 0
    assert report["healthy"] is True
    assert report["platform"] == "vllm_metal.platform.MetalPlatform"
    assert report["device"]["backend"] == "cpu"
    assert report["versions"]["vllm"] == "0.32.0"
    assert report["problems"] == []


def problem(capsys):
    """The problems of a report that is not healthy."""
    code, output = examine(capsys, "--json")
    report = json.loads(output)
    assert code == 1
    assert report["healthy"] is False
    return " ".join(found["what"] + " " + found["fix"] for found in report["problems"])


def test_target_device(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    assert "unset VLLM_TARGET_DEVICE" in problem(capsys)


def test_plugin_left_out(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "metal,other")
    text = problem(capsys)
    assert "leaves out the plugin metal_ops" in text
    assert "plugin metal." not in text


@pytest.mark.parametrize(("package", "version"), [("vllm", None), ("mlx", None)])
def test_missing_package(capsys, healthy_installation, package, version):
    healthy_installation[package] = version
    assert f"The package {package} is not installed." in problem(capsys)


def test_unknown_vllm(capsys, healthy_installation):
    healthy_installation["vllm"] = "0.14.0"
    assert "vLLM 0.14.0 is not a release" in problem(capsys)


def test_other_mlx(capsys, healthy_installation):
    healthy_installation["mlx"] = "9.9.9"
    assert "built for MLX 0.0.0, but 9.9.9 is installed" in problem(capsys)


def with_entry_points(monkeypatch, change):
    def changed(*, group):
        return change(group, list(entry_points(group=group)))

    monkeypatch.setattr(doctor, "entry_points", changed)


def other_platform():
    return "other.platform.OtherPlatform"


def test_other_active_platform_plugin(capsys, monkeypatch):
    other = EntryPoint("other", f"{__name__}:other_platform", doctor.PLATFORM_GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: other_platform)
    with_entry_points(
        monkeypatch,
        lambda group, found: [*found, other] if group == doctor.PLATFORM_GROUP else found,
    )
    assert "The platform plugin other is active as well" in problem(capsys)


def test_plugins_not_installed(capsys, monkeypatch):
    with_entry_points(monkeypatch, lambda *_: [])
    text = problem(capsys)
    assert "vllm_metal:register in vllm.platform_plugins is not installed" in text
    assert "vllm_metal:register_ops in vllm.general_plugins is not installed" in text


def test_bad_variable(capsys, fake_core, monkeypatch):
    def refuse():
        raise ValueError("[environment] VLLM_METAL_DEBUG must be 0 or 1 but is 'maybe'.")

    monkeypatch.setattr(fake_core, "environment", refuse)
    assert "VLLM_METAL_DEBUG must be 0 or 1" in problem(capsys)


def test_device_that_is_not_there(capsys, fake_core, monkeypatch):
    def refuse():
        raise RuntimeError("[device] VLLM_MLX_DEVICE is gpu but MLX finds no GPU.")

    monkeypatch.setattr(fake_core, "device_info", refuse)
    assert "MLX finds no GPU" in problem(capsys)


def test_start_method_is_a_warning(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "fork")
    code, output = examine(capsys)
    assert code == 0
    assert "VLLM_WORKER_MULTIPROC_METHOD=fork is overridden by spawn" in output


def test_variables_that_are_set_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("VLLM_METAL_BLOCK_SIZE", "32")
    assert "VLLM_METAL_BLOCK_SIZE=32" in examine(capsys)[1]


@pytest.mark.parametrize(
    ("machine", "release", "expected"),
    [("x86_64", "15.1", "for Intel"), ("arm64", "13.6", "macOS 13.6 is too old")],
)
def test_mac_that_mlx_does_not_run_on(capsys, monkeypatch, machine, release, expected):
    monkeypatch.setattr(doctor.system, "system", lambda: "Darwin")
    monkeypatch.setattr(doctor.system, "machine", lambda: machine)
    monkeypatch.setattr(doctor.system, "mac_ver", lambda: (release, ("", "", ""), ""))
    assert expected in problem(capsys)
