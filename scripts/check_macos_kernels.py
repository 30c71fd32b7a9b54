# SPDX-License-Identifier: Apache-2.0
"""Compile the Metal side of the GPU kernels for macOS, on Linux, and look every import up.

    python -m venv /tmp/mac && /tmp/mac/bin/pip install ziglang==0.17.1
    pip download mlx-metal==0.32.4 --no-deps --only-binary=:all: --platform macosx_14_0_arm64
    unzip mlx_metal-*.whl -d /tmp/mac/wheel
    /tmp/mac/bin/python scripts/check_macos_kernels.py --mlx /tmp/mac/wheel/mlx

Each file of src/kernels/metal and src/kernels/gpu is compiled for arm64, macOS 14. A name that it
imports must be defined by another of them, or exported by MLX's library for macOS, by libc++, by
libSystem or by the Objective-C runtime. Names of our own namespace that other folders define are
left to the Linux build, which links them; those of gpu/device.h must be defined here.

What passes here compiles and links on a Mac. It has not run there, and the kernels' own text is
compiled by Metal at run time only. Needs llvm-nm.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = "aarch64-macos.14.0"
FLAGS = [
    *("-std=c++20", "-O2", "-g0", "-fno-sanitize=all", "-Wno-macro-redefined"),
    # What macOS 14's libc++ lacks is an error, as with Apple's SDK.
    "-U_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS",
    "-D_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS=1",
]
# The names that metal-cpp's headers use of frameworks that only Apple's SDK has.
FRAMEWORK_HEADERS = {
    "CoreFoundation/CoreFoundation.h": """
        #include <stdint.h>
        typedef double CFTimeInterval;
        typedef const void* CFTypeRef;
        typedef const struct __CFArray* CFArrayRef;
        typedef const struct __CFAllocator* CFAllocatorRef;
        typedef signed long CFIndex;
        """,
    "CoreGraphics/CGColorSpace.h": "typedef struct CGColorSpace* CGColorSpaceRef;",
    "CoreGraphics/CGGeometry.h": """
        typedef double CGFloat;
        struct CGSize { CGFloat width, height; };
        struct CGPoint { CGFloat x, y; };
        struct CGRect { struct CGPoint origin; struct CGSize size; };
        """,
    "IOSurface/IOSurfaceRef.h": "typedef struct __IOSurface* IOSurfaceRef;",
}
OBJECTIVE_C = {"_objc_msgSend", "_objc_lookUpClass", "_objc_getProtocol", "_sel_registerName"}
DEVICE_FUNCTIONS = (
    "kernels_available",
    "kernel_target",
    "lookup_array",
    "compile",
    "allocate",
    "launch",
    "hold",
)


def zig(*arguments: object, cache: Path) -> None:
    command = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET, *map(str, arguments)]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache / "local")}
    subprocess.run(command, check=True, env={**os.environ, **caches})


def names(kind: str, *files: Path) -> set[str]:
    """Names that object files or libraries define (--defined-only) or import (-u)."""
    command = ["llvm-nm", "-g", "-f", "just-symbols", kind, *map(str, files)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.strip() for line in listing.splitlines() if line.startswith("_")}


def system_names() -> set[str]:
    """What libSystem exports, by the text stub that comes with zig."""
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        raise SystemExit("ziglang is missing: pip install ziglang==0.17.1")
    stub = Path(package.origin).parent / "lib" / "libc" / "darwin" / "libSystem.tbd"
    lists = re.findall(r"symbols:\s*\[(.*?)\]", stub.read_text(encoding="utf-8"), re.DOTALL)
    return {name.strip().strip("'\"") for one in lists for name in one.split(",")}


def cxx_runtime_names(folder: Path, cache: Path) -> set[str]:
    """What libc++ has: zig builds its own when it first links a program."""
    (folder / "empty.cpp").write_text("#include <string>\nint main() { return 0; }\n")
    zig(folder / "empty.cpp", "-g0", "-o", folder / "empty", cache=cache)
    return names("--defined-only", *cache.rglob("libc++.a"), *cache.rglob("libc++abi.a"))


def write_framework_headers(folder: Path) -> None:
    for name, text in FRAMEWORK_HEADERS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#pragma once\n" + text, encoding="utf-8")


def compile_sources(folder: Path, mlx: Path, cache: Path) -> list[Path]:
    embedded = folder / "embedded_kernels.cpp"
    kernels = ROOT / "src" / "kernels"
    script = ROOT / "cmake" / "EmbedKernels.cmake"
    cmake = shutil.which("cmake") or str(ROOT / ".venv" / "bin" / "cmake")
    definitions = [f"-DFOLDER={kernels / 'gpu'}", f"-DOUTPUT={embedded}"]
    subprocess.run([cmake, *definitions, "-P", script], check=True)
    include = mlx / "include"
    options = ["-I", ROOT / "src", "-isystem", folder, "-isystem", include]
    options += ["-isystem", include / "metal_cpp"]
    objects = []
    for source in [
        embedded,
        *sorted(kernels.glob("metal/*.cpp")),
        *sorted(kernels.glob("gpu/*.cpp")),
    ]:
        print(f"compiling {source.name}", flush=True)
        objects.append(folder / f"{source.parent.name}_{source.stem}.o")
        zig(*FLAGS, *options, "-c", source, "-o", objects[-1], cache=cache)
    return objects


def check(objects: list[Path], libraries: dict[str, set[str]]) -> list[str]:
    defined = names("--defined-only", *objects)
    errors = []
    for function in DEVICE_FUNCTIONS:
        mangled = f"__ZN10vllm_metal3gpu{len(function)}{function}E"
        if not any(name.startswith(mangled) for name in defined):
            errors.append(f"gpu::{function} is not defined in src/kernels/metal")
    found = dict.fromkeys(libraries, 0)
    for name in sorted(names("-u", *objects) - defined):
        home = next((library for library, has in libraries.items() if name in has), None)
        if home is not None:
            found[home] += 1
        elif not re.match(r"__ZNK?10vllm_metal(?!3gpu)", name):
            errors.append(f"{name} is imported and nothing exports it")
    print("imports:", ", ".join(f"{count} of {library}" for library, count in found.items()))
    return errors


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--mlx", type=Path, required=True, help="the folder mlx of the macOS wheel")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "zig-macos")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_framework_headers(folder)
        objects = compile_sources(folder, arguments.mlx, arguments.cache)
        errors = check(
            objects,
            {
                "libmlx": names("--defined-only", arguments.mlx / "lib" / "libmlx.dylib"),
                "libc++": cxx_runtime_names(folder, arguments.cache),
                "libSystem": system_names(),
                "libobjc": OBJECTIVE_C,
            },
        )
    print("\n".join(errors) or "every import has a home")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
