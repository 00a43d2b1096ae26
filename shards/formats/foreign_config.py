"""A model whose blocks transformers' own layers compute: what we know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForeignConfig:
    """``document``: config.json, of which transformers makes the model. ``layers``: what it calls the list of
    its blocks, the last part of the name, such as "layers". ``front``: modules with weights through which
    embedded tokens go before block 0, such as a table of positions; block 0 has them. ``blocks``, ``client``:
    the names in the files of each block's tensors, and of those outside the blocks, once they are known."""

    document: str
    layers: str
    front: tuple[str, ...] = ()
    blocks: tuple[tuple[str, ...], ...] = ()
    client: tuple[str, ...] = ()
