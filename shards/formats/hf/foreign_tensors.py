"""The tensors of a model that transformers computes: under the names that its files have."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from ...families.named_source import NamedSource
from ...families.places import Place
from ..config import ModelConfig
from ..foreign_config import ForeignConfig
from ..qtypes import DENSE
from ..tensors import TensorSource, needed_tensors


def foreign_places(
    config: ModelConfig, foreign: ForeignConfig, present: Collection[str]
) -> tuple[ModelConfig, dict[str, Place]]:
    """As ``tensors.stored_places``; shapes are not told."""
    config = replace(config, foreign=_with_names(foreign, config.n_blocks, present))
    return config, {name: Place(name, (), ()) for name in needed_tensors(config, None, client=False)}


def foreign_tensors(
    config: ModelConfig, foreign: ForeignConfig, source: TensorSource, where: str
) -> tuple[ModelConfig, NamedSource]:
    """As ``tensors.checked_tensors``: those of plain numbers. Shapes are checked where weights are loaded."""
    plain = {name: info.shape for name, info in source.manifest.items() if info.qtype in DENSE}
    config, found = foreign_places(config, foreign, plain)
    found = {name: place._replace(shape=plain[name], whole=plain[name]) for name, place in found.items()}
    return config, NamedSource(source, found, where, ignored=".*")


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
