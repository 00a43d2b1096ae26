"""Python's structs are those that the C kernels have."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from swarm_node.shards.kernels import experts, library, linear, pages, rows
from swarm_node.shards.native import block, span, state
from swarm_node.swarm.runtime.c_build import NativeUnavailableError, load_library

STRUCTS = {
    name: kind
    for module in (linear, rows, pages, experts, state, block, span)
    for name, kind in vars(module).items()
    if name.startswith("Sn") and isinstance(kind, type) and issubclass(kind, ctypes.Structure)
}


def c_name(name: str) -> str:
    return "sn_" + name.removeprefix("Sn").lower()


def test_sizes_and_places_of_all_fields(tmp_path: Path) -> None:
    lines, want = [], []
    for name, kind in STRUCTS.items():
        lines.append(f"sizeof({c_name(name)})")
        want.append(ctypes.sizeof(kind))
        for field, *_ in kind._fields_:
            lines.append(f"offsetof({c_name(name)}, {field})")
            want.append(getattr(kind, field).offset)
    source = tmp_path / "structs.c"
    source.write_text(
        "#include <stddef.h>\n"
        f'#include "{library._SOURCES / "block.h"}"\n'
        f"const int64_t places[] = {{{', '.join(lines)}}};\n"
    )
    try:
        found = load_library("structs", [source], ())
    except NativeUnavailableError as error:
        pytest.skip(str(error))
    got = (ctypes.c_int64 * len(want)).in_dll(found, "places")
    assert dict(zip(lines, got, strict=True)) == dict(zip(lines, want, strict=True))
