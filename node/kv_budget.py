"""How many tokens of KV cache a node may hold, and who holds them. Plain ints: no tensor, no clock."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from ..swarm.errors import LocalProtocolError, UsageError

MEMORY_SHARE = 0.25
"""Part of the available memory that the default gives to KV cache: weights of other nodes, the page cache
and the machine's owner need the rest."""
MEMORY_CEILING = 0.8
"""Part of the available memory that one full context may claim when it needs more than its share."""
MAX_CONTEXTS = 64
"""The default stops at this many full contexts: more sessions than a node can decode at a useful speed."""


def default_kv_tokens(available_bytes: int, bytes_per_token: int, context_tokens: int) -> int:
    """Tokens of KV cache for a node that was not told: a share of the available memory.

    At least one full context where that fits into MEMORY_CEILING, at most MAX_CONTEXTS of them, never less
    than one token. ``bytes_per_token`` is for the whole span.
    """
    if bytes_per_token < 1 or context_tokens < 1:
        raise UsageError(f"{bytes_per_token} bytes a token and a context of {context_tokens} make no cache")
    share = int(available_bytes * MEMORY_SHARE) // bytes_per_token
    ceiling = int(available_bytes * MEMORY_CEILING) // bytes_per_token
    wanted = max(share, min(context_tokens, ceiling))
    return max(1, min(wanted, MAX_CONTEXTS * context_tokens))


@dataclass(frozen=True, slots=True)
class KvStatistics:
    """Tokens of the whole span. ``reservations`` is the number of sessions that hold some."""

    total_tokens: int
    free_tokens: int
    reservations: int


class KvBudget:
    """Reservations of KV cache, counted in (token, block) cells so that a sub-span costs its part only.

    ``n_blocks`` is the length of the node's span. Every reservation is whole: a session gets all the tokens
    it asked for or nothing, so no session can run out halfway.
    """

    __slots__ = ("_free_cells", "_held", "_n_blocks", "_total_tokens")

    def __init__(self, total_tokens: int, n_blocks: int) -> None:
        if total_tokens < 1 or n_blocks < 1:
            raise UsageError(f"a KV cache of {total_tokens} tokens for {n_blocks} blocks cannot be")
        self._total_tokens = total_tokens
        self._n_blocks = n_blocks
        self._free_cells = total_tokens * n_blocks
        self._held: dict[Hashable, int] = {}

    @property
    def total_tokens(self) -> int:
        return self._total_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that a session over the whole span could still reserve."""
        return self._free_cells // self._n_blocks

    def statistics(self) -> KvStatistics:
        return KvStatistics(self._total_tokens, self.free_tokens, len(self._held))

    def could_ever_fit(self, tokens: int, blocks: int) -> bool:
        """Whether an empty cache would hold it; if not, waiting is in vain."""
        return 1 <= blocks <= self._n_blocks and 1 <= tokens <= self._total_tokens * self._n_blocks // blocks

    def reserve(self, holder: Hashable, tokens: int, blocks: int) -> bool:
        """Give ``holder`` room for ``tokens`` over ``blocks`` blocks; False, and nothing changed, if there
        is none.

        Raises LocalProtocolError for a holder that has a reservation already or for impossible numbers.
        """
        if holder in self._held:
            raise LocalProtocolError(f"{holder!r} has a KV reservation already")
        if tokens < 1 or not 1 <= blocks <= self._n_blocks:
            raise LocalProtocolError(f"a KV reservation of {tokens} tokens over {blocks} blocks cannot be")
        cells = tokens * blocks
        if cells > self._free_cells:
            return False
        self._free_cells -= cells
        self._held[holder] = cells
        return True

    def release(self, holder: Hashable) -> None:
        """Take a reservation back. Raises LocalProtocolError if there is none: a double free is a bug."""
        cells = self._held.pop(holder, None)
        if cells is None:
            raise LocalProtocolError(f"{holder!r} has no KV reservation")
        self._free_cells += cells
