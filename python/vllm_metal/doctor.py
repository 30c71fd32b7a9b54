# SPDX-License-Identifier: Apache-2.0
"""Check the installation: versions, the platform vLLM chooses and why, the device, known traps.

The exit code is 0 when vLLM can serve on this platform and 1 when something is in the way.
"""

import argparse
import json
import os
import platform as system
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

from vllm_metal import envs

PLATFORM_GROUP = "vllm.platform_plugins"
GENERAL_GROUP = "vllm.general_plugins"
_OUR_PLUGINS = {PLATFORM_GROUP: "vllm_metal:register", GENERAL_GROUP: "vllm_metal:register_ops"}
_OUR_PLATFORM = "vllm_metal.platform.MetalPlatform"
# vLLM's wheels on PyPI are builds for CUDA.
_HOW_TO_INSTALL = {
    "vllm": "Install the vllm-…+empty-py3-none-any.whl of a release of vLLM Metal into this "
    "environment, or run `make setup` in a checkout, which builds it into the checkout's .venv."
}
_PACKAGES = ("vllm-metal", "vllm", "mlx", "torch", "transformers")


@dataclass(frozen=True)
class Finding:
    """Something wrong, and what mends it."""

    what: str
    fix: str


@dataclass
class Report:
    """What the doctor found. `problems` are in the way, `warnings` are not."""

    versions: dict[str, str | None] = field(default_factory=dict)
    system: str = ""
    platform: str | None = None
    reason: str = ""
    device: dict[str, Any] | None = None
    environment: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is in the way."""
        return not self.problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `vllm-metal doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Examine and print; returns the exit code."""
    report = examine()
    if args.json:
        print(json.dumps({**asdict(report), "healthy": report.healthy}, indent=2))
    else:
        print("\n".join(_lines(report)))
    return 0 if report.healthy else 1


def examine() -> Report:
    """Look at everything. Each part reports what it finds, and none stops the others."""
    report = Report(
        versions={name: _version(name) for name in _PACKAGES},
        system=f"{system.system()} {system.release()} {system.machine()}, "
        f"Python {system.python_version()}",
    )
    report.problems += _system_problems()
    report.problems += _installation_problems(report.versions)
    report.problems += _plugin_problems()
    report.warnings += _warnings()
    _examine_core(report)
    _examine_platform(report)
    return report


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _system_problems() -> Iterator[Finding]:
    if system.system() != "Darwin":
        return
    if system.machine() != "arm64":
        yield Finding(
            "This Python is built for Intel; MLX needs one for Apple Silicon.",
            "Install Python for arm64, for example with `uv python install`.",
        )
    if int(system.mac_ver()[0].split(".")[0] or 0) < 14:
        yield Finding(f"macOS {system.mac_ver()[0]} is too old for MLX.", "Update to macOS 14.")


def _installation_problems(versions: dict[str, str | None]) -> Iterator[Finding]:
    for name, found in versions.items():
        if found is None:
            yield Finding(
                f"The package {name} is not installed.",
                _HOW_TO_INSTALL.get(name, f"Run `pip install {name}`."),
            )
    found = versions["vllm"]
    if found is None:
        return
    from packaging.version import Version

    from vllm_metal.compat import SERVED_VLLM

    if Version(found).release[:2] not in SERVED_VLLM:
        served = ", ".join(f"{major}.{minor}" for major, minor in SERVED_VLLM)
        yield Finding(
            f"vLLM {found} is not a release that this package was made for ({served}).",
            "Install one of them.",
        )


def _plugin_problems() -> Iterator[Finding]:
    target = os.environ.get("VLLM_TARGET_DEVICE")
    if target == "cpu":
        yield Finding(
            "VLLM_TARGET_DEVICE=cpu makes vLLM skip all platform plugins.",
            "It belongs to building vLLM. Run `unset VLLM_TARGET_DEVICE`.",
        )
    for group, function in _OUR_PLUGINS.items():
        ours = [entry for entry in entry_points(group=group) if entry.value == function]
        if not ours:
            yield Finding(
                f"The entry point {function} in {group} is not installed.",
                "Install the package; a source tree on PYTHONPATH is not enough.",
            )
        elif not _allowed(ours[0]):
            yield Finding(
                f"VLLM_PLUGINS={os.environ['VLLM_PLUGINS']} leaves out the plugin {ours[0].name}.",
                f"Add {ours[0].name} to it or unset it.",
            )
    for name in _other_active_platforms():
        yield Finding(
            f"The platform plugin {name} is active as well; vLLM takes one.",
            "Uninstall it, or leave it out of VLLM_PLUGINS.",
        )


def _allowed(entry: EntryPoint) -> bool:
    allowed = os.environ.get("VLLM_PLUGINS")
    return allowed is None or entry.name in allowed.split(",")


def _other_active_platforms() -> Iterator[str]:
    for entry in entry_points(group=PLATFORM_GROUP):
        if entry.value == _OUR_PLUGINS[PLATFORM_GROUP] or not _allowed(entry):
            continue
        try:
            active = entry.load()() is not None
        except Exception:  # vLLM takes a plugin that fails for inactive
            active = False
        if active:
            yield entry.name


def _warnings() -> Iterator[Finding]:
    method = os.environ.get("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if method != "spawn":
        yield Finding(
            f"VLLM_WORKER_MULTIPROC_METHOD={method} is overridden by spawn.",
            "A GPU context does not survive fork; unset the variable.",
        )
    target = os.environ.get("VLLM_TARGET_DEVICE")
    if target not in (None, "cpu"):
        yield Finding(
            f"VLLM_TARGET_DEVICE={target} is set.", "It is for building vLLM only; unset it."
        )


def _examine_core(report: Report) -> None:
    """Load the core and ask for its variables and its device."""
    try:
        from vllm_metal import _core
    except ImportError as error:
        report.problems.append(
            Finding(
                f"The core does not load: {error}",
                "Reinstall vllm-metal with the MLX it was built for.",
            )
        )
        return
    if report.versions["mlx"] not in (None, _core.mlx_version):
        report.problems.append(
            Finding(
                f"The core was built for MLX {_core.mlx_version}, but {report.versions['mlx']} is "
                "installed.",
                f"Run `pip install mlx=={_core.mlx_version}`.",
            )
        )
    try:
        report.environment = _core.environment()
        report.device = _core.device_info()
    except (ValueError, RuntimeError) as error:
        report.problems.append(Finding(str(error), "Change the environment variable or unset it."))


def _examine_platform(report: Report) -> None:
    """Let vLLM choose its platform, as it does at every start."""
    if report.versions["vllm"] is None:
        report.reason = "vLLM is not installed"
        return
    try:
        from vllm.platforms import current_platform
    except Exception as error:
        report.reason = f"vLLM failed to choose: {error}"
    else:
        chosen = type(current_platform)
        report.platform = f"{chosen.__module__}.{chosen.__qualname__}"
        report.reason = _reason(report)
    if report.platform == _OUR_PLATFORM or report.problems:
        return
    if not envs.wants_mlx():
        report.warnings.append(
            Finding("VLLM_METAL_USE_MLX=0 turns this plugin off.", "Unset it to compute with MLX.")
        )
    else:
        report.problems.append(
            Finding(
                f"vLLM chose the platform {report.platform} ({report.reason}).",
                "Please report this with the output of `vllm-metal doctor --json`.",
            )
        )


def _reason(report: Report) -> str:
    if report.platform == _OUR_PLATFORM:
        return "the plugin is installed and nothing turns it off"
    if not envs.wants_mlx():
        return "VLLM_METAL_USE_MLX turns the plugin off"
    if report.problems:
        return "see the problems below"
    return "unknown"


def _lines(report: Report) -> Iterator[str]:
    yield f"System    {report.system}"
    for name, found in report.versions.items():
        yield f"{name:<13} {found or 'not installed'}"
    yield f"Platform  {report.platform or 'none'}: {report.reason}"
    if report.device is not None:
        from vllm_metal.memory import format_bytes

        yield (
            f"Device    {report.device['name']} ({report.device['backend']}), "
            f"{format_bytes(report.device['total_memory'])} of memory, "
            f"{format_bytes(report.device['available_memory'])} available"
        )
    for variable in report.environment:
        if variable["is_set"]:
            yield f"Set       {variable['name']}={variable['value']}: {variable['meaning']}"
    for title, findings in (("Problem", report.problems), ("Warning", report.warnings)):
        for finding in findings:
            yield f"{title}   {finding.what}\n          {finding.fix}"
    yield "Ready to serve." if report.healthy else "Not ready to serve."
