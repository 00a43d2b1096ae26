"""A node's figures as families for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ....client.metrics.exposition import Family, counter, gauge, histogram
from ....swarm.types import NodeState
from ...loaded_span import NodeStatistics

if TYPE_CHECKING:
    from ...figures.work import WorkTotals
    from ...node import Node
    from ...weights.sharing import WeightService


def families(node: Node, weights: WeightService) -> Iterator[Family]:
    figures = node.figures()
    blocks, model = str(figures.span or ""), "" if figures.model is None else figures.model.name
    yield gauge(
        "swarm_node_info",
        "What the node serves, or is about to.",
        {(node.peer_id, node.config.name, model, blocks): 1},
        ("peer_id", "name", "model", "blocks"),
    )
    yield from _state(figures.state.value, figures.ready)
    yield gauge("swarm_node_uptime_seconds", "Seconds since the node began.", figures.uptime_s)
    yield from _work(figures.work)
    if figures.load is not None:
        yield from _load(figures.load)
    yield counter(
        "swarm_node_weights_bytes",
        "Bytes of models' files, to peers, and from peers and the hub.",
        {("sent",): weights.sent_bytes, ("received",): weights.fetched_bytes},
        ("direction",),
    )


def without_node(state: str) -> Iterator[Family]:
    """Of a command that has no node now, and what it does instead."""
    yield from _state(state, False)


def _state(now: str, ready: bool) -> Iterator[Family]:
    yield gauge(
        "swarm_node_state",
        "1 for the state that the node is in.",
        {**{(state.value,): 0 for state in NodeState}, (now,): 1},
        ("state",),
    )
    yield gauge("swarm_node_ready", "1 while a span is served and the swarm knows.", ready)


def _work(work: WorkTotals) -> Iterator[Family]:
    yield counter(
        "swarm_node_tokens",
        "Tokens that went through the blocks: of prompts (prefill), and in steps of a few (decode).",
        {("prefill",): work.prefill_tokens, ("decode",): work.decode_tokens},
        ("phase",),
    )
    yield counter("swarm_node_sessions_opened", "Sessions that peers opened.", work.sessions_opened)
    yield counter(
        "swarm_node_sessions_ended",
        "Sessions that are over, by why.",
        {(why,): count for why, count in work.sessions_ended.items()},
        ("why",),
    )
    yield counter("swarm_node_peers_served", "Different peers that had a session here.", work.peers_served)
    yield counter(
        "swarm_node_refusals",
        "Messages that told a peer why it did not get what it asked for, by code.",
        {(code,): count for code, count in work.refused.items()},
        ("code",),
    )
    yield counter("swarm_node_replays", "Journals sent again, for repairs of routes.", work.replays)
    yield counter("swarm_node_attaches", "Sessions that got another hop before them.", work.attaches)
    yield histogram(
        "swarm_node_queue_wait_seconds", "Seconds that each step waited for its turn.", work.queue_wait_s
    )
    yield histogram("swarm_node_batch_sessions", "Sessions in each batch.", work.batch_sessions)
    yield counter(
        "swarm_node_stream_bytes",
        "Bytes over streams of peers, by who opened them and the way they take.",
        {
            (direction, side, way): size
            for (side, way), traffic in work.traffic.items()
            for direction, size in (("received", traffic.received), ("sent", traffic.sent))
        },
        ("direction", "side", "way"),
    )
    yield counter("swarm_node_loads", "Spans that were loaded.", work.loads)
    yield gauge("swarm_node_load_seconds", "Seconds that the last span took to load.", work.last_load_s)


def _load(load: NodeStatistics) -> Iterator[Family]:
    server, engine = load.server, load.engine
    yield gauge("swarm_node_sessions", "Sessions that are open.", server.sessions)
    yield gauge("swarm_node_peers", "Peers that are connected.", server.peers)
    yield gauge("swarm_node_connections", "Streams of peers.", server.connections)
    yield gauge("swarm_node_links", "Streams to next hops.", server.links)
    yield gauge("swarm_node_steps_queued", "Steps without an answer.", engine.queued)
    yield gauge("swarm_node_tokens_per_second", "Speed over the last seconds.", engine.tokens_per_s)
    yield gauge("swarm_node_threads", "Threads that compute a batch.", engine.threads)
    yield gauge("swarm_node_kv_tokens", "Tokens that the KV cache holds at most.", engine.total_tokens)
    yield gauge(
        "swarm_node_kv_free_tokens", "Tokens that sessions could still be opened for.", engine.free_tokens
    )
    yield gauge(
        "swarm_node_kv_cached_tokens",
        "Tokens of sessions that are over, kept for those that begin alike; they count as free.",
        engine.cached_tokens,
    )
    yield gauge(
        "swarm_node_state_sessions",
        "Sessions for which there is memory of the blocks that keep a state; 0: no block does.",
        server.state_sessions,
    )
    yield gauge(
        "swarm_node_state_free_sessions",
        "Sessions for which it could still be had.",
        server.free_state_sessions,
    )
    yield counter(
        "swarm_node_prefix_hit_tokens", "Tokens that sessions found in the cache.", engine.prefix_hit_tokens
    )
    yield gauge("swarm_node_journal_bytes", "Bytes of all journals.", server.journal.used)
    yield gauge("swarm_node_journal_limit_bytes", "Bytes that journals may have.", server.journal.budget)
    yield counter("swarm_node_journals_lost", "Journals dropped for want of room.", server.journal.lost)
