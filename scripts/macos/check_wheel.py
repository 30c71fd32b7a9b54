# SPDX-License-Identifier: Apache-2.0
"""Check a wheel for macOS: `check_wheel.py WHEEL PYTHON EXPORTS MLX…`. Needs lief.

PYTHON is the file that exports the interpreter's names, EXPORTS is JSON, library -> names; MLX are
the folders of MLX's wheels, one for each release of macOS.
Then the extension is spoilt in each way that the check is there for, and each must be found.
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import lief
from macos import macho


def python_names(program: Path) -> set[str]:
    """What an interpreter of this system exports to extensions, spelt as on macOS."""
    file = lief.ELF.parse(str(program))  # which owns its symbols
    return {f"_{symbol.name}" for symbol in file.exported_symbols}


def rename_import(file: lief.MachO.Binary) -> None:
    symbol = next(
        s for s in file.imported_symbols if "vllm_metal" not in s.name and "mlx" in s.name
    )
    symbol.name = "__ZN3mlx4core" + "x" * (len(symbol.name) - 13)


def set_minimum_os(file: lief.MachO.Binary) -> None:
    file.build_version.minos = [15, 0, 0]


def rename_library(file: lief.MachO.Binary) -> None:
    library = next(one for one in file.libraries if one.name == macho.LIBMLX)
    library.name = "@rpath/libmlp.dylib"


def move_rpath(file: lief.MachO.Binary) -> None:
    file.rpaths[0].path = "/opt/mlx/lib"


def remove_signature(file: lief.MachO.Binary) -> None:
    file.remove_signature()


# How to spoil an extension -> what must be said of it.
CONTROLS: list[tuple[Callable[[lief.MachO.Binary], None], str]] = [
    (rename_import, "which does not have it"),
    (set_minimum_os, "it is made for MACOS 15.0"),
    (rename_library, "it loads @rpath/libmlp.dylib"),
    (move_rpath, "its rpaths are ['/opt/mlx/lib']"),
    (remove_signature, "it is not signed"),
]


def control_problems(extension: Path, homes: dict[str, set[str]]) -> Iterator[str]:
    """The mistakes that are not found."""
    for spoil, expected in CONTROLS:
        container = lief.MachO.parse(str(extension))  # which owns the file
        file = container.at(0)
        spoil(file)
        with tempfile.TemporaryDirectory() as folder:
            spoilt = Path(folder) / extension.name
            file.write(str(spoilt))
            found = list(macho.problems(macho.read(spoilt), homes))
        if not any(expected in problem for problem in found):
            yield f"control {spoil.__name__}: '{expected}' was not found, but {found}"


def check(wheel: Path, homes: dict[str, set[str]], mlx: list[Path]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        yield from macho.wheel_problems(archive.namelist())
        found = [name for name in archive.namelist() if name.startswith(macho.EXTENSION)]
        extension = next(Path(archive.extract(name, folder)) for name in found)
        binary = macho.read(extension)
        for root in mlx:
            homes[macho.LIBMLX] = macho.read(root / "lib" / "libmlx.dylib").exported
            yield from (f"MLX in {root}: {text}" for text in macho.problems(binary, homes))
        yield from control_problems(extension, homes)
        counts = Counter(binary.imported.values())
        size = extension.stat().st_size / 1e6
    imports = ", ".join(f"{count} of {Path(library).name}" for library, count in counts.items())
    print(f"{wheel.name}: {size:.1f} MB, imports {imports}; {len(CONTROLS)} controls", flush=True)


def main() -> int:
    wheel, python, exports, *mlx = map(Path, sys.argv[1:])
    listed = json.loads(exports.read_text(encoding="utf-8"))
    homes = {library: set(names) for library, names in listed.items()}
    homes[macho.PYTHON] = python_names(python)
    problems = list(check(wheel, homes, mlx))
    for problem in problems:
        print(f"{wheel.name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
