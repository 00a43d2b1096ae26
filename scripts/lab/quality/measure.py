"""Runs a model cut into spans inside one process and compares what it predicts with the float32 model.

Every variant reads the same windows of text as the reference, each window from position 0. A cut between
blocks is emulated by encoding and decoding the activations, which is all that a real hop does to them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swarm_node.shards.checkpoint.checkpoint import Checkpoint
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.layers.kv_pool import KV_DTYPES
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.client_part import ClientModel
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.kinds import F8, NONE, STATELESS
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.types import Span

HOPS = 3
"""Serving processes of the demo: the route whose every edge one row emulates."""
REFERENCE = LoadOptions(dtype="float32", quantize="none", kernels="torch")
DECODE_ROWS = 8
"""Tokens at once that go through the kernels for decoding, which hold the weights in another form."""
CHARACTERS_PER_TOKEN = 8
"""Characters of text that are encoded for each wanted token. No tokenizer's tokens of prose are longer."""


def even_cuts(allowed: Sequence[int], count: int) -> list[int]:
    """``count`` of a model's inner cuts, as evenly spaced as ``allowed`` (with both ends) lets them be."""
    left, n_blocks = list(allowed[1:-1]), allowed[-1]
    if count > len(left):
        raise UsageError(f"a model of {n_blocks} blocks cannot be cut {count} times")
    chosen = []
    for number in range(1, count + 1):
        wanted = round(n_blocks * number / (count + 1))
        chosen.append(min(left, key=lambda cut: abs(cut - wanted)))
        left.remove(chosen[-1])
    return sorted(chosen)


def measure(
    model: str,
    text: str,
    *,
    tokens: int,
    window: int,
    cuts: int,
    threads: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """The whole report, ready for JSON. Raises SwarmError for a bad model and UsageError for a short text."""
    if threads:
        torch.set_num_threads(threads)
    progress("loading")
    with open_checkpoint(model, client=True) as checkpoint, torch.inference_mode():
        tokenizer = checkpoint.tokenizer()
        pieces = windows(tokenizer, text, tokens // window, window, tokenizer.encode("", add_special=True))
        inner = even_cuts(checkpoint.config.cuts, cuts)
        reference = LocalModel(checkpoint, REFERENCE)
        variants = _variants(checkpoint, reference, inner)
        perplexity = _run(reference, variants, pieces, progress)
        middle = reference.hidden_after(pieces[0], inner[len(inner) // 2])
        return {
            "model": str(checkpoint.ref),
            "tokens": len(pieces) * window,
            "positions": len(pieces) * (window - 1),
            "window": window,
            "cuts": inner,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "reference": {"perplexity": perplexity},
            "codecs": [v.result() for v in variants if v.model is reference],
            "weights": [v.result() for v in variants if v.model is not reference],
            "costs": [_cost(codec, middle) for codec in STATELESS.values()],
        }


class LocalModel:
    """A whole model in this process, that can be cut anywhere."""

    def __init__(self, checkpoint: Checkpoint, options: LoadOptions) -> None:
        self.n_blocks = checkpoint.config.n_blocks
        self.blocks: SpanBackend[Any] = load_backend(
            checkpoint, Span(0, self.n_blocks), options, threads=torch.get_num_threads()
        )
        self.client: ClientModel = load_client_model(checkpoint, options)

    @property
    def weights(self) -> str:
        return self.blocks.weights

    def logits(
        self,
        ids: Sequence[int],
        codec: Codec = NONE,
        edges: Sequence[int] = (),
        rows: int = 0,
        kv_dtype: str = "float32",
    ) -> Tensor:
        """(tokens, vocab) float32, with one round trip of the activations before each block of ``edges``.

        ``rows``: tokens to send through at once, as a decoding node does (0: all, as in prefill).
        """
        cache = Cache(self.blocks, len(ids), kv_dtype)
        logits = []
        for start in range(0, len(ids), rows or len(ids)):
            piece = ids[start : start + (rows or len(ids))]
            hidden = self._hidden(piece, start, cache, codec, edges)
            logits.append(torch.from_numpy(self.client.logits(hidden.numpy())))
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def hidden_after(self, ids: Sequence[int], blocks: int) -> Tensor:
        """(tokens, hidden) between two blocks."""
        cache = Cache(self.blocks, len(ids), "float32")
        return cache.through(torch.from_numpy(self.client.embed(ids)), 0, 0, blocks)

    def all_hidden(self, ids: Sequence[int]) -> list[np.ndarray]:
        """(tokens, width) at each boundary: before every block, and after the last."""
        cache = Cache(self.blocks, len(ids), "float32")
        found = [torch.from_numpy(self.client.embed(ids))]
        for block in range(self.n_blocks):
            found.append(cache.through(found[-1], 0, block, block + 1))
        return [each.float().cpu().numpy() for each in found]

    def through_edges(self, rows: np.ndarray, edges: Sequence[tuple[int, Codec]]) -> np.ndarray:
        """What leaves the last block, where ``rows`` (tokens, width) enter at the first of the ``edges`` and
        make a round trip at each. Raises LocalProtocolError for rows that a codec cannot hold."""
        x, at = torch.from_numpy(rows), edges[0][0]
        x = self._travel(x, at, 0, Cache(self.blocks, len(rows), "float32"), edges)
        return x.float().cpu().numpy()

    def _hidden(
        self, ids: Sequence[int], start: int, cache: Cache, codec: Codec, edges: Sequence[int]
    ) -> Tensor:
        x = torch.from_numpy(self.client.embed(ids))
        return self._travel(x, 0, start, cache, [(edge, codec) for edge in edges])

    def _travel(
        self, x: Tensor, at: int, start: int, cache: Cache, edges: Sequence[tuple[int, Codec]]
    ) -> Tensor:
        """``x`` (T, width) at position ``start`` and boundary ``at``, through the rest of the model."""
        for edge, codec in edges:  # n_blocks: after the last block
            x = cache.through(x, start, at, edge)
            x = torch.from_numpy(codec.decode(codec.encode(x.float().cpu().numpy()), *x.shape)).to(x)
            at = edge
        return cache.through(x, start, at, self.n_blocks)


class Cache:
    """Keys, values and states of one window."""

    def __init__(self, model: SpanBackend[Any], tokens: int, kv_dtype: str) -> None:
        self._model, self._memory = model, OwnMemory(model, kv_dtype, tokens)

    def through(self, x: Tensor, start: int, first: int, end: int) -> Tensor:
        """``x`` (T, hidden) from position ``start`` on, through blocks ``first`` to ``end``."""
        if first == end:
            return x
        memory = self._memory
        piece = memory.slice(start, len(x))
        return torch.from_numpy(self._model.forward(x.numpy(), [piece], memory.pool, Span(first, end)))


@dataclass(slots=True)
class Variant:
    """A way to run the model, and what was summed up about it over all predictions so far."""

    name: str
    model: LocalModel
    codec: Codec = NONE
    edges: Sequence[int] = ()
    rows: int = 0
    kv_dtype: str = "float32"
    count: int = 0
    kl: float = 0.0
    same: int = 0
    loss: float = 0.0  # differences of the negative log likelihood from the reference's, in nats
    loss_squared: float = 0.0
    seconds: float = 0.0

    def add(self, expected: Tensor, ids: Sequence[int]) -> None:
        """``expected``: the reference's log probabilities (tokens - 1, vocab) for one window ``ids``."""
        begun = time.perf_counter()
        got = self.model.logits(ids, self.codec, self.edges, self.rows, self.kv_dtype)[:-1].log_softmax(
            dim=-1
        )
        self.seconds += time.perf_counter() - begun
        target = torch.as_tensor(ids[1:])[:, None]
        change = (expected.gather(1, target) - got.gather(1, target)).double()
        self.count += len(ids) - 1
        self.same += int((expected.argmax(dim=-1) == got.argmax(dim=-1)).sum())
        self.loss += float(change.sum())
        self.loss_squared += float(change.square().sum())
        self.kl += float((expected.exp() * (expected - got)).sum(dim=-1).double().sum())

    def result(self) -> dict[str, Any]:
        """Means; the error is one standard error of the paired difference in log perplexity."""
        mean = self.loss / self.count
        variance = max(0.0, self.loss_squared / self.count - mean**2)
        return {
            "name": self.name,
            "codec": self.codec.name,
            "edges": list(self.edges),
            "weights": self.model.weights,
            "tokens_at_once": self.rows or None,
            "kv_dtype": self.kv_dtype,
            "kl": self.kl / self.count,
            "perplexity_change": math.expm1(mean),
            "perplexity_change_error": math.sqrt(variance / self.count),
            "same_top_token": self.same / self.count,
            "seconds": self.seconds,
        }


def _variants(checkpoint: Checkpoint, reference: LocalModel, cuts: Sequence[int]) -> list[Variant]:
    n_blocks = reference.n_blocks
    hops = [round(n_blocks * i / HOPS) for i in range(HOPS + 1)]
    # Through the client: it decodes what a hop sends and encodes it again for the next.
    every_edge = [hops[0], *(edge for edge in hops[1:-1] for _ in range(2)), hops[-1]]
    variants = [Variant(kind, reference, codec, cuts) for kind, codec in STATELESS.items()]
    name = f"{F8.name} on all {len(every_edge)} edges of {HOPS} hops"
    variants.append(Variant(name, reference, F8, every_edge))
    variants += [
        Variant(f"KV {kv_dtype}", reference, kv_dtype=kv_dtype)
        for kv_dtype in KV_DTYPES
        if kv_dtype != "float32"
    ]
    for quantize in ("int8", "int4", "auto"):
        model = LocalModel(checkpoint, LoadOptions(quantize=quantize))
        name = f"{'default' if quantize == 'auto' else quantize} = {model.weights}"
        variants.append(Variant(f"{name}, prefill", model))
        variants.append(Variant(f"{name}, decode", model, rows=DECODE_ROWS))
    name = f"default, decode, with {F8.name} on all edges of {HOPS} hops"
    variants.append(Variant(name, model, F8, every_edge, DECODE_ROWS))
    return variants


def _run(
    reference: LocalModel,
    variants: Sequence[Variant],
    pieces: Sequence[list[int]],
    progress: Callable[[str], None],
) -> float:
    """Fills the variants in; returns the reference's perplexity."""
    loss = 0.0
    for done, ids in enumerate(pieces):
        expected = reference.logits(ids)[:-1].log_softmax(dim=-1)  # (tokens - 1, vocab)
        loss -= float(expected.gather(1, torch.as_tensor(ids[1:])[:, None]).double().sum())
        for variant in variants:
            progress(f"window {done + 1} of {len(pieces)}: {variant.name}")
            variant.add(expected, ids)
    return math.exp(loss / sum(len(ids) - 1 for ids in pieces))


def windows(
    tokenizer: Tokenizer, text: str, count: int, window: int, front: Sequence[int]
) -> list[list[int]]:
    """The first ``count`` pieces of the text, of ``window`` tokens with ``front`` before each. Raises
    UsageError for a text that is too short."""
    each = window - len(front)
    ids = tokenizer.encode(text[: count * window * CHARACTERS_PER_TOKEN], add_special=False)
    if len(ids) < count * each:
        raise UsageError(
            f"the text has {len(ids)} tokens; {count * each} are asked for",
            hint="Give a longer --text or fewer --tokens.",
        )
    return [[*front, *ids[i * each : (i + 1) * each]] for i in range(count)]


def _cost(codec: Codec, hidden: Tensor) -> dict[str, Any]:
    """Bytes per value, and microseconds to encode and decode one row and all rows of real activations."""
    tokens, width = hidden.shape
    return {
        "name": codec.name,
        "bytes_per_value": codec.row_bytes(width) / width,
        "rows": {
            str(n): _round_trip_us(codec, hidden[-n:].float().cpu().numpy(), 2000 // n + 5)
            for n in (1, tokens)
        },
    }


def _round_trip_us(codec: Codec, rows: np.ndarray, repeats: int) -> float:
    """The median of ``repeats`` measurements."""
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        codec.decode(codec.encode(rows), *rows.shape)
        taken.append(time.perf_counter() - begun)
    return sorted(taken)[len(taken) // 2] * 1e6
