"""The tensors of a model that transformers computes: under the names that its files have."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from ....swarm.errors import CheckpointError
from ...families.named_source import NamedSource
from ...families.places import Place
from ..config import ModelConfig
from ..foreign_config import ForeignConfig
from ..qtypes import DENSE
from ..tensors import TensorSource, needed_tensors


def foreign_tensors(
    config: ModelConfig, foreign: ForeignConfig, source: TensorSource, where: str
) -> tuple[ModelConfig, NamedSource]:
    """As ``tensors.checked_tensors``: those of plain numbers. Shapes are checked where weights are loaded."""
    plain = {name: info.shape for name, info in source.manifest.items() if info.qtype in DENSE}
    named = _with_names(foreign, config.n_blocks, plain)
    _refuse_holes(named, where)
    config = replace(config, foreign=named)
    needed = needed_tensors(config, None, client=False)
    found = {name: Place(name, plain[name], plain[name]) for name in needed}
    return config, NamedSource(source, found, where, ignored=".*")


def _refuse_holes(foreign: ForeignConfig, where: str) -> None:
    """CheckpointError where a block, or what is before block 0, has no tensor at all."""
    blocks = foreign.blocks
    missing = [f"{foreign.layers}.{number}" for number, names in enumerate(blocks) if not names]
    first = {part for name in blocks[0] for part in _parts(name)} if blocks else set()
    missing += [name for name in foreign.front if name not in first]
    if missing:
        raise CheckpointError(
            f"{where} has no tensors of {missing[0]}",
            hint="It is damaged, or not a complete model: download it again.",
        )


def _parts(name: str) -> set[str]:
    """``a.b.c.weight`` → c, b.c, a.b.c: what may be called the module of a tensor."""
    module = name.rpartition(".")[0].split(".")
    return {".".join(module[at:]) for at in range(len(module))}


def _with_names(foreign: ForeignConfig, n_blocks: int, present: Collection[str]) -> ForeignConfig:
    """A block's tensors have its number behind the name of the list of blocks."""
    number = re.compile(rf"(?:^|\.){re.escape(foreign.layers)}\.([0-9]{{1,9}})\.")
    front = re.compile("|".join(rf"(?:^|.*\.){re.escape(name)}\.[^.]+" for name in foreign.front) or "(?!)")
    blocks: list[list[str]] = [[] for _ in range(n_blocks)]
    client: list[str] = []
    for name in present:
        found = number.search(name)
        if found is None:
            client.append(name)
            if front.fullmatch(name):
                blocks[0].append(name)
        elif int(found[1]) < n_blocks:  # behind them may lie layers that only guess further tokens
            blocks[int(found[1])].append(name)
    return replace(foreign, blocks=tuple(map(tuple, blocks)), client=tuple(client))
