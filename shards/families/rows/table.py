"""All families, by their names."""

from __future__ import annotations

from itertools import chain

from ....swarm.errors import UnsupportedModelError
from ...formats.values.shown import shown
from ..family import Family
from . import (
    deepseek,
    gemma,
    gemma3n,
    glm,
    gpt_oss,
    hybrid_delta,
    hybrid_mamba,
    layer_norm,
    lfm,
    llama,
    llama4,
    olmo,
    qwen,
    sparse,
)

ROWS: tuple[Family, ...] = tuple(
    chain(
        *(llama.ROWS, qwen.ROWS, gemma.ROWS, gemma3n.ROWS, glm.ROWS, olmo.ROWS, layer_norm.ROWS),
        *(sparse.ROWS, deepseek.ROWS, gpt_oss.ROWS, llama4.ROWS),
        *(hybrid_delta.ROWS, hybrid_mamba.ROWS, lfm.ROWS),
    )
)
FAMILIES = {row.name: row for row in ROWS}
"""Under ``ModelConfig.family``."""
BY_TYPE = {name: row for row in ROWS for name in (*row.types, *row.wrappers)}
BY_ARCHITECTURE = {name.lower(): row for row in ROWS for name in row.architectures}
BY_GGUF = {kind: row for row in ROWS if row.gguf is not None for kind in row.gguf.kinds}
"""By llama.cpp's architecture, and whether the file has experts."""


def unsupported_family(family: object, where: str) -> UnsupportedModelError:
    """``family``: the value in the file ``where``, of any type."""
    names = sorted(set(chain.from_iterable(row.types for row in ROWS)))
    return UnsupportedModelError(
        f"{where}: model family {shown(family)} is not supported", hint=f"Supported: {', '.join(names)}."
    )
