"""The tensors of a file as ours: renamed, split, taken from stacks, turned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ..formats.config import ModelConfig
from ..formats.qtypes import DENSE, QTYPES, SUPPORTED, row_bytes
from ..formats.raw_tensor import RawTensor
from ..formats.tensors import TensorInfo, TensorSource
from ..formats.values.shown import shown
from .places import Place, flat, row_order

_HARMLESS = r".*rotary_emb\.inv_freq"
"""Tensors that need not be read: the frequencies follow from the configuration, as in transformers."""
_NAMED = 3
"""A message names at most this many of the tensors that are not read."""


def next_blocks(config: ModelConfig, in_block: str) -> str:
    """Pattern of the names in blocks behind the last, which guess further tokens. ``in_block``: what names in
    block ``{}`` begin with."""
    numbers = "|".join(str(config.n_blocks + number) for number in range(config.next_blocks))
    return rf"(.*\.)?{re.escape(in_block).replace(re.escape('{}'), f'({numbers})')}.*"


class NamedSource:
    """Tensors under the names of ``block_tensors``, of a file with its own. Nothing is read before
    ``tensor``; what only moves rows keeps their type, and what turns a quantized matrix decodes it."""

    def __init__(
        self,
        inner: TensorSource,
        places: Mapping[str, Place],
        where: str,
        *,
        ignored: str = "",
        bias_optional: bool = False,
        behind: Mapping[str, Place] | None = None,
    ) -> None:
        """``ignored``: pattern of names that the file may have besides. ``bias_optional``: it may hold some
        biases and not others. ``behind``: places in blocks that guess further tokens. CheckpointError unless
        every tensor of the model is there in its right shape; UnsupportedModelError if there are more: a
        tensor that is not read belongs to another computation."""
        self._inner = inner
        self._where = where
        self._others = {**places, **behind} if behind else {}
        self._ignored, self._bias_optional = ignored, bias_optional
        self._places = {
            name: place
            for name, place in places.items()
            if not (bias_optional and name.endswith(".bias") and place.stored not in inner.manifest)
        }
        self.manifest: Mapping[str, TensorInfo] = {
            name: self._info(name, place) for name, place in self._places.items()
        }
        read = {place.stored for place in self._places.values()}
        _refuse_unread((name for name in inner.manifest if name not in read), where, ignored)

    def with_next(self) -> NamedSource:
        """The same file with the blocks that guess further tokens, which are looked at only now.

        UnsupportedModelError where it has none; CheckpointError where they are damaged."""
        if not self._others:
            raise UnsupportedModelError(
                f"{self._where} has no blocks that guess further tokens, or their family's are not known"
            )
        return NamedSource(
            self._inner,
            self._others,
            self._where,
            ignored=self._ignored,
            bias_optional=self._bias_optional,
        )

    def next_stored(self, names: Sequence[str], most: int) -> list[str]:
        """What the file calls the tensors that hold ``names``, of a block that guesses further tokens; none
        where they are not all there and right, or are more than ``most`` bytes."""
        if not most:
            return []
        try:
            whole = self.with_next()
        except (CheckpointError, UnsupportedModelError):
            return []
        there = [name for name in names if name in whole.manifest]
        if sum(whole.manifest[name].nbytes for name in there) > most:
            return []
        return list(dict.fromkeys(map(whole.stored, there)))

    def stored(self, name: str) -> str:
        """What the file calls the tensor that holds ``name``."""
        return self._find(name).stored

    def tensor(self, name: str) -> RawTensor:
        place = self._find(name)
        raw = self._inner.tensor(place.stored)
        if place.wrapped:
            raw = replace(raw, shape=place.whole, stored=raw.stored.reshape(place.whole[0], -1))
        raw = raw.named(name, place.whole)  # the file may have further dimensions of 1
        if place.number is not None:
            rows = flat(place.whole)[0] // place.whole[0]
            inside = place.whole[1:]
            raw = raw.part(name, inside, slice(place.number * rows, (place.number + 1) * rows))
        if place.transposed:
            raw = raw.turned(name)
        if isinstance(place.rows, slice):
            shape = place.shape if not place.transposed else (place.shape[0], raw.cols)
            raw = raw.part(name, shape, place.rows)
        elif place.rows is not None:
            start, size, each = place.rows
            groups = flat(raw.shape)[0] // each
            wanted = (np.arange(groups)[:, None] * each + np.arange(start, start + size)).reshape(-1)
            raw = raw.part(name, (len(wanted), *raw.shape[1:]), wanted)
        if place.turned:
            raw = raw.turned(name, place.turned)
        if len(place.shape) == 1:
            raw = raw.named(name, place.shape)
        if place.pairs is not None:
            raw = raw.part(name, raw.shape, row_order(place.pairs))
        raw = raw.named(name, place.shape)
        if place.less:
            return _floats(raw, raw.dequantize() - np.float32(place.less))
        return self._logarithm(raw) if place.log else raw

    def _logarithm(self, raw: RawTensor) -> RawTensor:
        """ln(-x) of a vector x: how llama.cpp keeps the rates of decays."""
        values = raw.dequantize()
        if not np.all((values < 0) & np.isfinite(values)):
            raise CheckpointError(f"tensor {raw.name} of {self._where} has values that are not below 0")
        return _floats(raw, np.log(-values))

    def release(self) -> None:
        self._inner.release()

    def close(self) -> None:
        self._inner.close()

    def _find(self, name: str) -> Place:
        try:
            return self._places[name]
        except KeyError:
            raise CheckpointError(f"{self._where} has no tensor {name}") from None

    def _info(self, name: str, place: Place) -> TensorInfo:
        info = self._inner.manifest.get(place.stored)
        if info is None:
            raise CheckpointError(
                f"{self._where} has no tensor {place.stored}",
                hint="The file is damaged, or is not a complete model.",
            )
        is_vector = len(place.whole) == 1 and prod(info.shape) == place.whole[0]
        as_told = place.wrapped and info.shape == (*place.whole, 1)
        if flat(info.shape) != flat(place.whole) and not is_vector and not as_told:
            raise CheckpointError(
                f"tensor {place.stored} of {self._where} has shape {list(info.shape)}, "
                f"the configuration says {list(place.whole)}",
                hint="The file is damaged, or its configuration belongs to another model.",
            )
        if info.qtype not in QTYPES or (len(place.whole) == 1 and info.qtype not in DENSE):
            raise UnsupportedModelError(
                f"tensor {place.stored} of {self._where} has type {info.qtype}, which is not supported",
                hint=SUPPORTED,
            )
        decoded = place.log or place.less or (info.qtype not in DENSE and (place.transposed or place.turned))
        qtype = "F32" if decoded else info.qtype
        rows, cols = flat(place.shape)
        return TensorInfo(name, place.shape, qtype, rows * row_bytes(qtype, cols))


def _floats(vector: RawTensor, values: np.ndarray) -> RawTensor:
    """``vector`` with other values, float32."""
    return replace(vector, qtype="F32", stored=values.reshape(1, -1).view(np.uint8), row_order=None)


def _refuse_unread(names: Iterable[str], where: str, ignored: str) -> None:
    harmless = re.compile(f"{_HARMLESS}|{ignored}" if ignored else _HARMLESS)
    unread = sorted(name for name in names if not harmless.fullmatch(name))
    if unread:
        named = ", ".join(map(shown, unread[:_NAMED]))
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        raise UnsupportedModelError(
            f"{where} has tensors that its configuration does not use: {named}{more}",
            hint="The configuration belongs to another model, or the model needs what is not supported.",
        )
