"""The recurrences of ``formats.blocks.state``: row by row, or some rows at once by products of matrices.

With D_ij the product of the decays after row j up to row i of a chunk, D_i that of all up to row i, D_j that
of all after row j, D that of all, and a matrix S before the chunk, its rows have

    o_i = (D_i q_i) S + sum over j <= i of D_ij (q_i k_j) u_j,   and S becomes D S + sum of (D_j k_j) u_j

with u = step * v or, by the delta rule, what solves u_i + beta_i (sum over j < i of D_ij (k_i k_j) u_j) =
beta_i (v_i - (D_i k_i) S): see arXiv 2406.06484, 2412.06464 and, for "plain", 2405.21060. Every D is the
exponential of a sum of numbers of which none is above 0, and no sum is the difference of two others: whatever
the decays, nothing overflows, and what a strong one left is as exact as what a weak one did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 8
"""With a decay a channel, rows so near to each other are multiplied one by one; of those farther apart each
side is decayed to a row between them, so that they go by products of matrices."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``qk`` (sessions, rows, 2, key_heads, key_dim), ``v`` (sessions, rows, heads, value_dim), ``log``
    (sessions, rows, heads, 1 or key_dim), of the decay, and ``added`` (sessions, rows, heads, 1): beta of the
    rule ``delta``, else the step. float32. ``tiled``: as ``RecurrenceConfig``'s."""

    qk: Tensor
    v: Tensor
    log: Tensor
    added: Tensor
    delta: bool
    tiled: bool

    def chunks(self, first: int, count: int, size: int) -> Rows:
        """``count`` chunks of ``size`` rows from ``first`` on, or fewer: (chunks, sessions, heads, size, …),
        and ``qk`` (chunks, sessions, key_heads, 2, size, key_dim)."""

        def cut(x: Tensor) -> Tensor:
            return x[:, first : first + count * size].unflatten(1, (-1, size)).transpose(0, 1)

        v, log, added = (cut(x).transpose(2, 3) for x in (self.v, self.log, self.added))
        qk = cut(self.qk).permute(0, 1, 4, 3, 2, 5).contiguous()
        return Rows(qk, v, log.contiguous(), added, self.delta, self.tiled)


def scan(rows: Rows, matrices: Tensor, size: int, together: int) -> Iterator[Tensor]:
    """The outputs (sessions, size, heads, value_dim) of each chunk of ``size`` rows, once ``matrices``
    (sessions * heads, key_dim, value_dim) are those after it. What does not depend on these is made for so
    many chunks ``together``.

    One row at a time, all operations are on tensors whose size does not depend on how many rows there are.
    """
    sessions, count, heads, _ = rows.v.shape
    for first in range(0, count, size * together):
        chunks = _Chunks.of(rows.chunks(first, together, size))
        for at in range(len(chunks.values)):
            yield chunks.advance(at, matrices).unflatten(0, (sessions, heads)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """What of chunks of ``size`` rows does not depend on the matrices before them; all (chunks, sessions *
    heads, …). ``reads``: q and, of the delta rule, k below it, decayed from before the chunk; ``solution``,
    of the delta rule: what v - k S is multiplied by to be u; ``within``: q of each row with k of the rows up
    to it; ``writes``: k decayed to the end of the chunk, transposed; ``decay`` of all of it."""

    size: int
    reads: Tensor
    values: Tensor
    solution: Tensor | None
    within: Tensor
    writes: Tensor
    decay: Tensor

    @classmethod
    def of(cls, rows: Rows) -> _Chunks:
        size, log, added = rows.log.shape[3], rows.log, rows.added
        if size == 1:
            return cls._of_single(rows)
        k, asked = rows.qk[:, :, :, 1], rows.qk if rows.delta else rows.qk[:, :, :, :1]
        since, after = log.cumsum(3).exp(), _after(log).exp()
        products = _products(asked, k, log, tiled=rows.tiled)
        values, solution = rows.v, None
        if not rows.delta:
            values = values * added
        else:
            coupled = products[:, :, :, 1] * added
            identity = torch.eye(size, device=log.device).expand(coupled.shape)
            solved = torch.linalg.solve_triangular(coupled, identity, upper=False, unitriangular=True)
            solution = solved * added.transpose(3, 4)
        reads = _of_heads(asked, since[:, :, :, None], tiled=rows.tiled)
        return cls(
            size,
            reads.flatten(3, 4).flatten(1, 2),
            values.flatten(1, 2),
            None if solution is None else solution.flatten(1, 2),
            products[:, :, :, 0].flatten(1, 2),
            _of_heads(k, after, tiled=rows.tiled).flatten(1, 2).transpose(2, 3),
            since[:, :, :, -1].flatten(1, 2)[..., None],
        )

    @classmethod
    def _of_single(cls, rows: Rows) -> _Chunks:
        """Of one row each, in few operations: of a decode step, they are most of the time."""
        since, added, values = rows.log.exp(), rows.added, rows.v
        qk = _repeated(rows.qk, since.shape[2], tiled=rows.tiled)
        q, k = qk[:, :, :, 0], qk[:, :, :, 1]
        reads = (qk if rows.delta else qk[:, :, :, :1]) * since[:, :, :, None]
        return cls(
            1,
            reads.flatten(3, 4).flatten(1, 2),
            (values if rows.delta else values * added).flatten(1, 2),
            added.flatten(1, 2) if rows.delta else None,
            (q * k).sum(-1, True).flatten(1, 2),
            k.transpose(3, 4).flatten(1, 2),
            since.transpose(3, 4).flatten(1, 2),
        )

    def advance(self, at: int, matrices: Tensor) -> Tensor:
        """Its rows (sessions * heads, size, value_dim); ``matrices`` become those after it."""
        found, u = torch.bmm(self.reads[at], matrices), self.values[at]
        if self.solution is not None:
            u = _product(self.solution[at], u - found[:, self.size :])
        out = found[:, : self.size] + _product(self.within[at], u)
        matrices.mul_(self.decay[at])
        if self.size == 1:
            matrices.addcmul_(self.writes[at], u)
        else:
            matrices.baddbmm_(self.writes[at], u)
        return out


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left * right if left.shape[-1] == 1 else torch.bmm(left, right)


def _repeated(of_keys: Tensor, heads: int, *, tiled: bool) -> Tensor:
    """(…, …, key_heads, …) → (…, …, heads, …): each head's key head."""
    served = heads // of_keys.shape[2]
    if served == 1:
        return of_keys
    if tiled:
        return of_keys.repeat(1, 1, served, *(1,) * (of_keys.ndim - 3))
    return of_keys.repeat_interleave(served, 2)


def _of_heads(of_keys: Tensor, of_heads: Tensor, *, tiled: bool) -> Tensor:
    """The product of (…, …, key_heads, …) and (…, …, heads, …), of each head with its key head."""
    key_heads, heads = of_keys.shape[2], of_heads.shape[2]
    if heads == key_heads:
        return of_keys * of_heads
    served = heads // key_heads
    if tiled:
        return (of_keys[:, :, None] * of_heads.unflatten(2, (served, key_heads))).flatten(2, 3)
    return (of_keys[:, :, :, None] * of_heads.unflatten(2, (key_heads, served))).flatten(2, 3)


def _after(log: Tensor) -> Tensor:
    """Sums of the rows after each of ``log`` (…, rows, channels)."""
    later = F.pad(log[..., 1:, :], (0, 0, 0, 1))
    return later.flip(-2).cumsum(-2).flip(-2)


def _products(asked: Tensor, k: Tensor, log: Tensor, *, tiled: bool) -> Tensor:
    """Of each row of ``asked`` (…, key_heads, n, size, key_dim) with each of ``k`` (…, key_heads, size,
    key_dim) up to it, decayed by what is between them in ``log`` (…, heads, size, 1 or key_dim) → (…, heads,
    n, size, size), 0 above the diagonal."""
    if log.shape[-1] == 1:
        found = (asked.flatten(3, 4) @ k.transpose(-1, -2)).unflatten(3, asked.shape[3:5])
        return _of_heads(found, _between(log)[:, :, :, None], tiled=tiled)
    size = log.shape[-2]
    out = log.new_zeros((*log.shape[:3], asked.shape[3], size, size))
    for first in range(0, size, NEAR):
        own = slice(first, min(size, first + NEAR))
        here, decays = asked[..., own, :], log[..., own, :]
        out[..., own, own] = _near(here, k[..., own, :], decays, tiled=tiled)
        if first:
            nearer = _of_heads(here, decays.cumsum(-2).exp()[:, :, :, None], tiled=tiled)
            farther = _of_heads(k[..., :first, :], _after(log[..., :first, :]).exp(), tiled=tiled)
            found = nearer.flatten(3, 4) @ farther.transpose(-1, -2)
            out[..., own, :first] = found.unflatten(3, nearer.shape[3:5])
    return out


def _between(log: Tensor) -> Tensor:
    """exp of the sums of ``log`` (…, size, 1) after each row up to each other one → (…, size, size)."""
    size = log.shape[-2]
    is_later = torch.ones(size, size, dtype=torch.bool, device=log.device).tril(-1)
    sums = log.expand(*log.shape[:-1], size).masked_fill(~is_later, 0).cumsum(-2)
    return sums.masked_fill(is_later.T, float("-inf")).exp()


def _near(asked: Tensor, k: Tensor, log: Tensor, *, tiled: bool) -> Tensor:
    """As ``_products``, pair by pair."""
    size = log.shape[-2]
    out = log.new_zeros((*log.shape[:3], asked.shape[3], size, size))
    passed = torch.zeros_like(log)
    for back in range(size):
        if back:
            passed = passed[..., 1:, :] + log[..., 1 : size - back + 1, :]
        decayed = _of_heads(k[..., : size - back, :], passed.exp(), tiled=tiled)
        found = _of_heads(asked[..., back:, :], decayed[:, :, :, None], tiled=tiled).sum(-1)
        out.diagonal(-back, -2, -1).copy_(found)
    return out
