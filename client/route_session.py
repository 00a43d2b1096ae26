"""One session on every hop of a route: hidden states in at block 0, hidden states out after the last block.

A decode step is awaited hop by hop in the caller's task. A prefill goes through in chunks, so that all hops
work at the same time. Between hops that speak the same codec a payload is passed on as it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter

import torch
from torch import Tensor

from ..swarm import codecs
from ..swarm.errors import ErrorCode, LocalProtocolError, PeerError, RemoteProtocolError, SwarmError
from ..swarm.link import LinkPool
from ..swarm.messages import Want
from ..swarm.types import Route
from ..swarm.wire import Payload
from .hop import HopClient, HopFailedError, SessionSettings
from .prefix import HopPlace, PageChain, PrefixKey, chain_seeds
from .trace import Phase

CHUNKS_PER_HOP = 2
"""Chunks a prefill is cut into for each hop of a route of several: the last hop then idles for under a
quarter."""
SMALLEST_CHUNK = 64
"""Tokens; below it kernels lose more than the overlap gains."""
CHUNKS_AHEAD = 4
"""Chunks that may wait between two hops."""

_Chunk = tuple[Payload, int, int]  # payload in the next hop's codec, tokens, position


class RouteSession:
    """Hops opened together. ``close`` frees them at once; after any error it must be called.

    ``length``: tokens that every hop holds already when the session opens. The first ``forward`` goes on from
    there, or from before.
    """

    def __init__(self, route: Route, hops: list[HopClient], hidden_size: int) -> None:
        self.route = route
        self.hops = hops
        self.length = min(hop.length for hop in hops)
        self._hidden_size = hidden_size
        self._fed = False
        self._max_step_tokens = min(hop.max_step_tokens for hop in hops)

    @classmethod
    async def open(
        cls,
        links: LinkPool,
        route: Route,
        settings: SessionSettings,
        wire_codec: str,
        spoken: Mapping[str, tuple[str, ...]],
        prefix: PrefixKey | None = None,
        ids: Sequence[int] = (),
    ) -> RouteSession:
        """Open every hop at the same time. ``spoken``: the codecs that each peer announced. With ``prefix``
        each hop is asked for the pages of ``ids`` that it may hold.

        Raises HopFailedError for the first hop that fails; the others are closed.
        """
        opened: dict[int, HopClient] = {}
        hop_codecs = _negotiate(route, wire_codec, spoken)
        chains: list[PageChain | None] = [None] * len(route.hops)
        if prefix is not None:
            places = [
                HopPlace(hop.span, prefix.weights.get(hop.peer_id, ""), codec)
                for hop, codec in zip(route.hops, hop_codecs, strict=True)
            ]
            chains = [PageChain(seed) for seed in chain_seeds(prefix.salt, prefix.digest, places)]

        async def open_hop(number: int) -> None:
            hop = route.hops[number]
            place = (number, len(route.hops))
            try:
                opened[number] = await HopClient.open(
                    links, hop, settings, hop_codecs[number], place, chains[number], ids
                )
            except SwarmError as error:
                raise HopFailedError(hop.peer_id, error) from error

        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(route.hops)):
                    group.create_task(open_hop(number))
        except BaseException as error:
            for client in opened.values():
                client.close()
            if isinstance(error, BaseExceptionGroup):
                raise _first_cause(error) from error
            raise
        return cls(route, [opened[number] for number in sorted(opened)], settings.hidden_size)

    async def forward(self, x: Tensor, position: int, want: Want = Want.LAST) -> Tensor:
        """Push ``x`` (tokens, hidden) through all blocks at ``position``.

        Returns (0, hidden), (1, hidden) or (tokens, hidden) float32 as ``want`` says. A ``position`` below
        what was pushed before rolls every hop back to it. Raises HopFailedError.
        """
        step = self._decode_step if len(x) == 1 else self._prefill
        hidden = await step(x, position, want)
        self._fed = True
        return hidden

    def close(self, ids: Sequence[int] = ()) -> None:
        """Free every hop's session at once. Never waits; may be called again. ``ids``: what was fed, for the
        hops to keep the pages of it."""
        for hop in self.hops:
            hop.close(ids)

    async def _decode_step(self, x: Tensor, position: int, want: Want) -> Tensor:
        began = perf_counter()
        payload: Payload = codecs.encode(self.hops[0].codec, x)
        phases = [hop.trace.decode if self._fed else hop.trace.prefill for hop in self.hops]
        phases[0].codec_s += perf_counter() - began
        last = len(self.hops) - 1
        for number, hop in enumerate(self.hops):
            try:
                hop.post(payload, 1, position, want if number == last else Want.ALL, phases[number])
                result = await hop.receive()
            except SwarmError as error:
                raise self._failure(number, error) from error
            payload = result.payload
            if number < last:
                payload = self._relay(number, payload, 1, phases[number])
        return self._decode(last, payload, 0 if want is Want.NOTHING else 1, phases[last])

    async def _prefill(self, x: Tensor, position: int, want: Want) -> Tensor:
        """In chunks; each hop has a task that feeds it and one that takes its results."""
        size = self.chunk_size(len(x))
        starts = range(0, len(x), size)
        queues = [asyncio.Queue[_Chunk](CHUNKS_AHEAD) for _ in self.hops]
        outputs: list[Tensor] = []
        last = len(self.hops) - 1

        def wanted(number: int, start: int) -> Want:
            if number < last:
                return Want.ALL
            return Want.NOTHING if want is Want.LAST and start != starts[-1] else want

        async def encode_chunks() -> None:
            hop = self.hops[0]
            for start in starts:
                began = perf_counter()
                piece = x[start : start + size]
                payload = codecs.encode(hop.codec, piece)
                hop.trace.prefill.codec_s += perf_counter() - began
                await queues[0].put((payload, len(piece), position + start))

        async def feed(number: int) -> None:
            hop = self.hops[number]
            for start in starts:
                payload, tokens, at = await queues[number].get()
                try:
                    await hop.room(len(payload))
                    hop.post(payload, tokens, at, wanted(number, start), hop.trace.prefill)
                except SwarmError as error:
                    raise self._failure(number, error) from error

        async def take(number: int) -> None:
            hop = self.hops[number]
            for start in starts:
                try:
                    result = await hop.receive()
                except SwarmError as error:
                    raise self._failure(number, error) from error
                if number == last:
                    outputs.append(self._decode(number, result.payload, result.tokens, hop.trace.prefill))
                else:
                    payload = self._relay(number, result.payload, result.tokens, hop.trace.prefill)
                    await queues[number + 1].put((payload, result.tokens, position + start))

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(encode_chunks())
                for number in range(len(self.hops)):
                    group.create_task(feed(number))
                    group.create_task(take(number))
        except BaseExceptionGroup as error:
            raise _first_cause(error) from error
        return outputs[-1] if want is Want.LAST else torch.cat(outputs)

    def chunk_size(self, tokens: int) -> int:
        """Tokens a chunk, for a prefill of ``tokens``: what every hop takes, and enough chunks to overlap."""
        if len(self.hops) == 1:
            return min(self._max_step_tokens, tokens)
        overlapping = -(-tokens // (CHUNKS_PER_HOP * len(self.hops)))
        return min(self._max_step_tokens, max(SMALLEST_CHUNK, overlapping), tokens)

    def _relay(self, number: int, payload: Payload, tokens: int, phase: Phase) -> Payload:
        """What hop ``number`` sent, in the codec of the next."""
        if self.hops[number].codec == self.hops[number + 1].codec:
            return payload
        return codecs.encode(self.hops[number + 1].codec, self._decode(number, payload, tokens, phase))

    def _decode(self, number: int, payload: Payload, tokens: int, phase: Phase) -> Tensor:
        """The hidden states (tokens, hidden) that hop ``number`` sent; blames it if they are none."""
        hop = self.hops[number]
        try:
            began = perf_counter()
            x = codecs.decode(hop.codec, payload, tokens, self._hidden_size)
        except RemoteProtocolError as error:
            raise HopFailedError(hop.peer_id, error) from error
        phase.codec_s += perf_counter() - began
        return x

    def _failure(self, number: int, error: SwarmError) -> HopFailedError:
        """Whose failure an error at hop ``number`` is: activations it refuses may be the hop's before."""
        if isinstance(error, LocalProtocolError):
            raise error  # a fault of this process: no other route would help
        hop = self.hops[number]
        refused = isinstance(error, PeerError) and error.code is ErrorCode.BAD_TENSOR
        if refused and number and (awaited := hop.awaited_payload):
            try:
                codecs.decode(hop.codec, awaited[0], awaited[1], self._hidden_size)
            except RemoteProtocolError as damaged:
                return HopFailedError(self.hops[number - 1].peer_id, damaged)
        return HopFailedError(hop.peer_id, error)


def _negotiate(route: Route, wire_codec: str, spoken: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Each hop's codec."""
    chosen = []
    for hop in route.hops:
        theirs = spoken.get(hop.peer_id) or codecs.CODECS
        try:
            chosen.append(codecs.negotiate(codecs.CODECS, theirs, wire_codec))
        except RemoteProtocolError as error:
            raise HopFailedError(hop.peer_id, error) from error
    return chosen


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended a task group: of several at once, a hop's before any other."""
    flat: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, HopFailedError)), flat[0])
