# SPDX-License-Identifier: Apache-2.0
"""What an extension module built for macOS says of itself, and what is wrong with it.

`read` needs lief; the rules in `problems` need nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from macos import link
from macos.stubs import LIBCXX, LIBOBJC, LIBSYSTEM

EXTENSION = "vllm_metal/_core."
LIBMLX = "@rpath/libmlx.dylib"
PYTHON = "Python"  # names of the interpreter, which the loader looks up in all that is loaded
FLAT_LOOKUP = 254  # the ordinal that stands for that
RPATH = "@loader_path/../mlx/lib"
MINIMUM_OS = tuple(map(int, link.MINIMUM_OS.split(".")))
LIBRARIES = {LIBMLX, LIBCXX, LIBSYSTEM, LIBOBJC}
# What a bundle of ours may ask of the loader. Anything else is new and wants a look.
LOAD_COMMANDS = {
    *("SEGMENT_64", "SYMTAB", "DYSYMTAB", "UUID", "BUILD_VERSION", "LOAD_DYLIB", "RPATH"),
    *("DYLD_CHAINED_FIXUPS", "DYLD_EXPORTS_TRIE", "DYLD_INFO_ONLY", "FUNCTION_STARTS"),
    *("DATA_IN_CODE", "SOURCE_VERSION", "CODE_SIGNATURE"),
}
# A C++ runtime of its own would not catch what MLX's library throws.
CXX_RUNTIME = re.compile(
    r"___cxa_throw|___gxx_personality_v0|__ZTI(?:St9exception|St13runtime_error)"
)


@dataclass
class Binary:
    """A Mach-O file in plain data."""

    name: str
    architecture: str = "ARM64"
    kind: str = "BUNDLE"
    platform: str = "MACOS"
    minimum_os: tuple[int, ...] = MINIMUM_OS
    signed: bool = True
    libraries: list[str] = field(default_factory=list)
    rpaths: list[str] = field(default_factory=list)
    load_commands: set[str] = field(default_factory=set)
    defined: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    imported: dict[str, str] = field(default_factory=dict)  # name -> library


def read(path: Path) -> Binary:
    """Read a file with one architecture."""
    import lief

    file = lief.MachO.parse(str(path))
    if file is None or file.size != 1:
        raise SystemExit(f"{path}: not a Mach-O file of one architecture")
    macho = file.at(0)
    version = macho.build_version
    own = lief.MachO.LoadCommand.TYPE.ID_DYLIB
    libraries = [library.name for library in macho.libraries if library.command != own]

    def home(ordinal: int) -> str:
        if 0 < ordinal <= len(libraries):
            return libraries[ordinal - 1]
        return PYTHON if ordinal == FLAT_LOOKUP else f"ordinal {ordinal}"

    imported = {symbol.name: home(symbol.library_ordinal) for symbol in macho.imported_symbols}
    return Binary(
        name=path.name,
        architecture=macho.header.cpu_type.name,
        kind=macho.header.file_type.name,
        platform=version.platform.name if version else "none",
        minimum_os=tuple(version.minos[:2]) if version else (0, 0),
        signed=macho.has_code_signature,
        libraries=libraries,
        rpaths=[rpath.path for rpath in macho.rpaths],
        load_commands={command.command.name for command in macho.commands},
        defined={symbol.name for symbol in macho.symbols} - set(imported),
        exported={symbol.name for symbol in macho.exported_symbols},
        imported=imported,
    )


def problems(binary: Binary, homes: dict[str, set[str]]) -> Iterator[str]:
    """What keeps the extension from loading; `homes` has what each library exports."""
    yield from format_problems(binary)
    yield from library_problems(binary)
    for name, library in sorted(binary.imported.items()):
        if library in homes and name not in homes[library]:
            yield f"{name} is imported from {library}, which does not have it"
        elif library not in homes:
            yield f"{name} is imported from {library}, which is none of {', '.join(sorted(homes))}"


def format_problems(binary: Binary) -> Iterator[str]:
    if (binary.architecture, binary.kind) != ("ARM64", "BUNDLE"):
        yield f"it is a {binary.kind} for {binary.architecture}, not a BUNDLE for ARM64"
    if binary.platform != "MACOS" or binary.minimum_os != MINIMUM_OS:
        version = ".".join(map(str, binary.minimum_os))
        yield f"it is made for {binary.platform} {version}, not for MACOS {link.MINIMUM_OS}"
    if not binary.signed:
        yield "it is not signed: arm64 loads only what is, if only ad hoc"
    for command in sorted(binary.load_commands - LOAD_COMMANDS):
        yield f"load command {command} is not one of {', '.join(sorted(LOAD_COMMANDS))}"
    module = binary.name.split(".")[0]
    if f"_PyInit_{module}" not in binary.exported:
        yield f"it does not export PyInit_{module}"
    if runtime := sorted(name for name in binary.defined if CXX_RUNTIME.fullmatch(name)):
        yield f"it has a C++ runtime of its own: {', '.join(runtime)}"


def library_problems(binary: Binary) -> Iterator[str]:
    for library in binary.libraries:
        if library not in LIBRARIES:
            yield f"it loads {library}, which is none of {', '.join(sorted(LIBRARIES))}"
    for library in (LIBMLX, LIBCXX, LIBSYSTEM):
        if library not in binary.libraries:
            yield f"it does not load {library}"
    if binary.rpaths != [RPATH]:
        yield f"its rpaths are {binary.rpaths}, not {RPATH} alone"


def wheel_problems(names: list[str]) -> Iterator[str]:
    libraries = [name for name in names if name.endswith((".so", ".dylib", ".metallib"))]
    if len(libraries) != 1 or not libraries[0].startswith(EXTENSION):
        yield f"it holds the libraries {libraries}, not {EXTENSION}*.so alone"
    elif not libraries[0].endswith(("-darwin.so", ".abi3.so")):
        yield f"{libraries[0]} has no suffix of macOS"
    for name in ("vllm_metal/platform.py", "vllm_metal/py.typed"):
        if name not in names:
            yield f"it lacks {name}"


def print_imports(paths: list[str]) -> None:
    """Print what files import, as JSON: library -> names."""
    found: dict[str, list[str]] = {}
    for path in paths:
        for name, library in read(Path(path)).imported.items():
            found.setdefault(library, []).append(name)
    print(json.dumps(found))
