"""A model's configuration under transformers' names, wherever it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from ...swarm.errors import CheckpointError, UnsupportedModelError
from ...swarm.names import listed
from ...swarm.types import MAX_BLOCKS
from ..formats.values.bounds import MAX_CONTEXT, MAX_WIDTH
from ..formats.values.fields import MAX_LIST, Fields
from ..formats.values.shown import shown

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
LINEAR = "linear_attention"
"""Of blocks that keep a state."""
_SAME = {"attention": FULL, "mamba": LINEAR}


class Settings(Fields):
    """``values``: the keys of the file, and the family's defaults for those that it lacks. ``names``: what
    the file calls a key, for messages. ``per_block``: keys whose value each block has for itself, with all of
    them; ``of(block)`` shows that block's.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        names: Mapping[str, str] = {},
        per_block: Mapping[str, list[Any]] = {},
        *,
        interleaved: bool | None = None,
        frequency_factors: tuple[float, ...] = (),
        is_gguf: bool = False,
    ) -> None:
        """``interleaved``: how the file's format has rotated pairs, if it is not as the family has them.
        ``frequency_factors``: of ``RopeConfig``, which a GGUF file has beside its settings."""
        super().__init__(values, where, names=names)
        self._per_block = per_block
        self.interleaved = interleaved
        self.frequency_factors = frequency_factors
        self.is_gguf = is_gguf
        self.block = 0
        self._lists: dict[str, tuple[Any, ...]] = {}  # read once for all blocks

    def of(self, block: int) -> Self:
        """These settings as block number ``block`` has them."""
        found = type(self).__new__(type(self))
        found.__dict__.update(self.__dict__)
        found.block = block
        if self._per_block:
            own = {key: values[block] for key, values in self._per_block.items() if block < len(values)}
            found._values = {**self._values, **own}
        return found

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """These settings with other values for some keys."""
        found = self.of(self.block)
        found._values, found._lists = {**found._values, **values}, {}
        return found

    @property
    def n_blocks(self) -> int:
        return self.integer("num_hidden_layers", least=1, most=MAX_BLOCKS)

    @property
    def hidden(self) -> int:
        return self.integer("hidden_size", least=1, most=MAX_WIDTH)

    @property
    def positions(self) -> int:
        return self.integer("max_position_embeddings", least=1, most=MAX_CONTEXT)

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads", least=1, most=MAX_WIDTH)

    @property
    def kv_heads(self) -> int:
        return self.optional_integer("num_key_value_heads", least=1, most=MAX_WIDTH) or self.heads

    @property
    def head_dim(self) -> int:
        given = self.optional_integer("head_dim", least=1, most=MAX_WIDTH)
        if given is None and self.hidden % self.heads:
            raise CheckpointError(
                f"{self.named('hidden_size')} is {self.hidden}, which {self.heads} attention heads "
                "cannot share"
            )
        return given or self.hidden // self.heads

    def layer_type(
        self, otherwise: Callable[[int], str] | str = FULL, known: tuple[str, ...] = (FULL, SLIDING)
    ) -> str:
        """``layer_types`` of this block; ``otherwise``, which may be a function of its number, where the file
        has no list of them. ``known``: the types that the family has."""
        kinds = self.texts("layer_types")
        if not kinds:
            return otherwise if isinstance(otherwise, str) else otherwise(self.block)
        if len(kinds) != self.n_blocks:
            raise CheckpointError(
                f"{self.named('layer_types')} has {len(kinds)} types, expected one for each of "
                f"{self.n_blocks} blocks"
            )
        kind = _SAME.get(kinds[self.block], kinds[self.block])
        if kind not in known:
            names = [*known, *(name for name, same in _SAME.items() if same in known)]
            raise UnsupportedModelError(
                f"{self.named('layer_types')} has {shown(kind)} for block {self.block}, expected "
                f"{listed(names)}"
            )
        return kind

    def texts(self, key: str) -> tuple[str, ...]:
        if key not in self._lists:
            self._lists[key] = super().texts(key)
        return self._lists[key]

    def integers(self, key: str, *, most: int, entries: int = MAX_LIST) -> tuple[int, ...]:
        if key in self._per_block:
            return super().integers(key, most=most, entries=entries)
        if key not in self._lists:
            self._lists[key] = super().integers(key, most=most, entries=entries)
        return self._lists[key]

    def window(self) -> int:
        """``sliding_window``: 0 for none, and for one that hides nothing in any context."""
        return self.optional_integer("sliding_window", least=1) or 0


def every(period: int, kind: str = FULL, others: str = SLIDING) -> Callable[[int], str]:
    """Blocks period - 1, 2 * period - 1, … are of ``kind``."""
    return lambda block: kind if (block + 1) % period == 0 else others
