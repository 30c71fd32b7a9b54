# SPDX-License-Identifier: Apache-2.0
"""The installation and the device."""

from vllm_metal.selftest.checks import Check, CheckFailed, Finding, Options


def checks(_options: Options) -> list[Check]:
    """Return what the other groups stand on."""
    return [
        Check("platform/device", _device),
        Check("platform/installation", _installation),
    ]


def _device() -> Finding:
    from vllm_metal import _core

    info = _core.device_info()
    return Finding(detail=f"{info['name']} ({info['backend']})", figures=info)


def _installation() -> Finding:
    from vllm_metal import doctor

    report = doctor.examine()
    if report.problems:
        raise CheckFailed(" ".join(f"{found.what} {found.fix}" for found in report.problems))
    warnings = " ".join(found.what for found in report.warnings)
    return Finding(detail=warnings, figures={"platform": report.platform})
