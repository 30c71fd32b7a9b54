# SPDX-License-Identifier: Apache-2.0
"""Check that includes in src/ follow the one-way flow of docs/architecture.md.

A folder includes only folders it is built on, headers do not include each other in a circle,
only config/env reads the environment, only kernels/compile_op uses mx::compile, nothing uses the
wall clock, and no header asks for which device it is compiled or opens a namespace.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What each folder is built on directly; it may include those and all that they are built on.
BUILT_ON: dict[str, tuple[str, ...]] = {
    "common": (),
    "files": ("common",),
    "config": ("files",),
    "platform": ("config",),
    "interop": ("platform",),
    "weights": ("interop",),
    "kernels": ("platform",),
    "cache": ("kernels",),
    "attention": ("cache",),
    "layers": ("attention", "weights"),
    "models": ("layers",),
    "sampling": ("config",),
    "runner": ("models", "sampling"),
    "selftest": ("kernels",),
    "bindings": ("runner", "selftest"),
}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(")
MX_COMPILE = re.compile(r"\bmx::(?:enable_)?compile\b|\bcore::(?:enable_)?compile\b|mlx/compile")
WALL_CLOCK = re.compile(
    r"\b(?:system_clock|high_resolution_clock|gettimeofday|CLOCK_REALTIME|localtime|gmtime)\b"
)
USING_NAMESPACE = re.compile(r"^\s*using\s+namespace\b", re.MULTILINE)
DEVICE_IF = re.compile(
    r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*(?:__APPLE__|__CUDA\w*|\w*METAL_AVAILABLE|MLX_\w+|USE_CUDA)",
    re.MULTILINE,
)


def may_include(folder: str) -> set[str]:
    """The folder itself and everything it is built on."""
    allowed = {folder}
    for base in BUILT_ON[folder]:
        allowed |= may_include(base)
    return allowed


def sources(root: Path) -> dict[str, Path]:
    """Every source file by the name under which it is included; bindings under "bindings/"."""
    found = {}
    for base, prefix in ((root / "src", ""), (root / "python" / "bindings", "bindings/")):
        for path in sorted(base.rglob("*")):
            if path.suffix in (".h", ".cpp", ".inc"):
                found[prefix + path.relative_to(base).as_posix()] = path
    return found


def included_files(name: str, text: str, known: dict[str, Path]) -> list[str]:
    """Our own files that `name` includes: by path from src/, or from its own folder."""
    result = []
    for target in INCLUDE.findall(text):
        beside = f"{name.rsplit('/', 1)[0]}/{target}"
        result.append(beside if target not in known and beside in known else target)
    return result


def find_cycle(graph: dict[str, list[str]]) -> list[str]:
    """One circle of includes as a path that ends where it starts, or nothing."""
    finished: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        path.append(name)
        for target in graph.get(name, []):
            if cycle := visit(target):
                return cycle
        path.pop()
        finished.add(name)
        return []

    for start in graph:
        if cycle := visit(start):
            return cycle
    return []


def check_file(name: str, text: str, includes: list[str], known: dict[str, Path]) -> list[str]:
    """Everything that is wrong with one file."""
    folder = name.split("/", maxsplit=1)[0]
    if folder not in BUILT_ON:
        return [f"{name}: folder {folder} has no place in the flow (BUILT_ON in check_layers.py)"]
    errors = []
    allowed = may_include(folder)
    for target in includes:
        if target not in known:
            errors.append(f'{name}: "{target}" is no file of src/; use <> for other libraries')
        elif target.split("/")[0] not in allowed:
            errors.append(f'{name}: {folder} may not include "{target}", only {sorted(allowed)}')
    code = COMMENT.sub("", text)
    if GETENV.search(code) and not name.startswith("config/env."):
        errors.append(f"{name}: getenv; read environment variables in config/env")
    if MX_COMPILE.search(code) and name != "kernels/compile_op.cpp":
        errors.append(f"{name}: mx::compile; on the CPU it runs a compiler when a program runs")
    if clock := WALL_CLOCK.search(code):
        errors.append(
            f"{name}: {clock[0]}; the wall clock jumps, std::chrono::steady_clock does not"
        )
    if name.endswith(".h") and USING_NAMESPACE.search(code):
        errors.append(f"{name}: using namespace in a header; it reaches all who include it")
    if name.endswith(".h") and (condition := DEVICE_IF.search(code)):
        errors.append(
            f"{name}: header depends on the device ({condition[0].strip()}); use a stub file"
        )
    return errors


def check(root: Path) -> list[str]:
    known = sources(root)
    errors: list[str] = []
    graph: dict[str, list[str]] = {}
    for name, path in known.items():
        text = path.read_text(encoding="utf-8")
        includes = included_files(name, text, known)
        graph[name] = [target for target in includes if target in known]
        errors += check_file(name, text, includes, known)
    if cycle := find_cycle(graph):
        errors.append("include cycle: " + " -> ".join(cycle))
    return errors


def main() -> int:
    errors = check(ROOT)
    print("\n".join(errors) or f"layers: {len(sources(ROOT))} files follow the flow")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
