"""Keys and values of one session, one contiguous piece of memory for all its blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..swarm.errors import LocalProtocolError
from ..swarm.types import Span


class SessionKv:
    """KV cache of one session over ``span`` (absolute block numbers), room for ``max_tokens`` tokens.

    Per block: keys and values (kv_heads, max_tokens, head_dim), so that a head's rows are contiguous for the
    dot products of decode. On CPU the memory is reserved whole but the system commits a page when it is first
    written, so a short conversation in a long reservation costs what it uses.

    ``length`` is how many tokens are valid. The compute thread alone reads and writes it.
    """

    __slots__ = ("keys", "length", "max_tokens", "span", "values")

    def __init__(
        self,
        span: Span,
        max_tokens: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.span = span
        self.max_tokens = max_tokens
        self.length = 0
        memory = torch.empty((len(span), 2, n_kv_heads, max_tokens, head_dim), dtype=dtype, device=device)
        self.keys: list[Tensor] = [memory[i, 0] for i in range(len(span))]
        self.values: list[Tensor] = [memory[i, 1] for i in range(len(span))]

    def rollback(self, length: int) -> None:
        """Forget every token from ``length`` on. Raises LocalProtocolError if that would leave a hole."""
        if not 0 <= length <= self.length:
            raise LocalProtocolError(f"cannot roll back to {length}: the cache holds {self.length} tokens")
        self.length = length


def kv_bytes_per_token(n_blocks: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes over ``n_blocks`` blocks."""
    return 2 * n_blocks * n_kv_heads * head_dim * dtype.itemsize
