"""What peers announce: entries of the DHT, and everything that is computed from what they say."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from swarm_node.client.dashboard.history import History
from swarm_node.client.dashboard.picture import Reading, swarm_sections
from swarm_node.dht.records.bodies import decode, encode_gone, encode_model, encode_node, encode_wanted
from swarm_node.dht.records.entry_check import EntryCheck
from swarm_node.dht.records.envelope import seal, subkey_of
from swarm_node.dht.records.keys import key_hash, node_key
from swarm_node.node.cli.network import report as reports
from swarm_node.node.cli.network import tables
from swarm_node.swarm.discovery.mdns_records import read_txt, txt_record
from swarm_node.swarm.identity import Identity
from swarm_node.swarm.membership.invite import Invite, make_invite
from swarm_node.swarm.placement.demand import Wanted, WantedModel, tally
from swarm_node.swarm.placement.planner import plan_join, plan_move
from swarm_node.swarm.placement.types import ModelShape, NodeOffer
from swarm_node.swarm.routing.best_route import (
    NoRouteError,
    RouteRequest,
    find_route,
    missing_blocks,
    predict_route,
)
from swarm_node.swarm.routing.edges import Edges
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, PeerLink, Span

from .mutation import havoc, msgpack_tree
from .target import Prepared, Target

IDENTITY = Identity(bytes(range(32)))
MODEL = ModelRef("demo", "ab" * 32, 8)
A, B, C = (Identity(bytes([number]) * 32).peer_id for number in range(3))
NOW = 1_800_000_000.0
"""The clock of those that check entries, in seconds of Unix time."""


def honest(peer_id: str, span: Span, **changes: object) -> NodeInfo:
    info = NodeInfo(
        peer_id=peer_id,
        maddrs=("/ip4/192.0.2.1/tcp/31330",),
        model=MODEL,
        span=span,
        state=NodeState.ONLINE,
        decode_ms_per_block=0.4,
        prefill_tokens_per_s=900.0,
        free_kv_tokens=4096,
        total_kv_tokens=8192,
        codecs=("int8", "none"),
        weights="int4",
        version="swarm-node 0.1",
        queue_ms=2.0,
        tokens_per_s=80.0,
        sessions=3,
        links=(PeerLink(B, 0.004, 1e8),),
        journal_bytes=1000,
        total_journal_bytes=10**6,
        max_blocks=8,
        context_ms_per_block=0.05,
        free_states=5,
        total_states=8,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


OTHERS = (
    honest(A, Span(0, 5)),
    honest(B, Span(4, 8), prefill_tokens_per_s=0.0),
    honest(C, Span(2, 8), links=()),
)


def _records() -> Target:
    """A record that its owner signed, with whatever in it; then everything that reads it."""

    def prepare() -> Prepared:
        infos = [
            honest(IDENTITY.peer_id, Span(0, 8), links=(PeerLink(A, 0.01, 1e7),)),
            honest(IDENTITY.peer_id, Span(3, 6), state=NodeState.JOINING),
            honest(IDENTITY.peer_id, Span(0, 4), decode_ms_per_block=0.0, max_blocks=0),
        ]
        wanted = encode_wanted((WantedModel("demo", ""), WantedModel("demo", MODEL.digest)))
        return Prepared([*map(encode_node, infos), encode_model(MODEL), wanted, encode_gone()], run)

    return Target("records", prepare, mutate=msgpack_tree, largest=4096)


def run(body: bytes) -> str:
    said = decode(IDENTITY.peer_id, body)
    if isinstance(said, NodeInfo):
        use_node(said)
    elif isinstance(said, tuple):
        wanted = Wanted(IDENTITY.peer_id, said)
        demand = tally([wanted], OTHERS)
        reports.build_report(OTHERS, demand)
    return type(said).__name__


def show_nodes(nodes: Sequence[NodeInfo]) -> None:
    """The state that dashboards send to browsers is JSON, of bounded size, and so is their history."""
    history = History()
    history.note(NOW, nodes, None)
    state = {**swarm_sections(Reading(nodes), str), "history": history.items}
    size = len(json.dumps(state, allow_nan=False))
    if size > 4096 * (1 + len(nodes)):
        raise AssertionError(f"{len(nodes)} nodes make {size} bytes of JSON")


def use_node(info: NodeInfo) -> None:
    """What clients, nodes and people do with an announcement among honest ones of the same model."""
    nodes = [*OTHERS, info]
    edges = Edges(nodes, {})
    for prompt, new, codec_bytes in ((0, 1, 600), (12, 100, 600), (100_000, 30_000, 32_768)):
        request = RouteRequest(
            MODEL.n_blocks, kv_tokens=64, prompt_tokens=prompt, new_tokens=new, bytes_per_token=codec_bytes
        )
        for candidates in (nodes, [info]):
            try:
                route = find_route(candidates, edges, request, salt="x", spread=0.05)
            except NoRouteError:
                continue
            predicted = predict_route(route.hops, {node.peer_id: node for node in nodes}, edges, request)
            check_finite(predicted.token_s, route.seconds_per_token)
    missing_blocks(nodes, MODEL.n_blocks)
    show_nodes(nodes)
    shape = ModelShape(info.model.n_blocks, 1_000_000, 100, 1024, 600)
    offer = NodeOffer("me", 6_000_000, 0.5, 900.0, (PeerLink(info.peer_id, 0.003, 1e8),))
    plan_join(nodes, offer, shape)
    plan_move([*nodes, honest("me", Span(0, 3))], offer, shape, now=0.0)
    demand = tally([Wanted("someone", (WantedModel(info.model.name, info.model.digest),))], nodes)
    report = reports.build_report(nodes, demand)
    Console(file=io.StringIO(), width=100).print(tables._table(report["models"][0]))


def check_finite(*numbers: float) -> None:
    for number in numbers:
        if not 0 <= number < float("inf"):
            raise AssertionError(f"a prediction of {number} s")


def _entries() -> Target:
    """An entry as it lies in the DHT, before its signature is known to be good."""
    key = key_hash(node_key(MODEL, Span(0, 8)))

    def prepare() -> Prepared:
        check = EntryCheck(clock=lambda: NOW)
        subkey = subkey_of(IDENTITY.peer_id.encode())

        def run(value: bytes) -> str:
            entry = check.check(key, subkey, NOW + 30, value)
            return type(decode(entry.owner, entry.body)).__name__

        info = honest(IDENTITY.peer_id, Span(0, 8))
        return Prepared(
            [seal(IDENTITY, key, NOW + 30, body) for body in (encode_node(info), encode_gone())], run
        )

    return Target("entries", prepare, mutate=msgpack_tree, largest=8192)


def _texts() -> Target:
    """Lines that people paste, and addresses."""

    def prepare() -> Prepared:
        invite = str(make_invite("demo", IDENTITY, [], time.time()))
        maddr = f"/ip4/192.0.2.1/tcp/31330/p2p/{IDENTITY.peer_id}"
        return Prepared([invite.encode(), maddr.encode(), b"0-20", b"0:21"], run_text)

    return Target("texts", prepare, largest=4096)


def run_text(data: bytes) -> str:
    from swarm_node.dht.records.maddrs import is_dialable
    from swarm_node.swarm.errors import UsageError
    from swarm_node.swarm.identity import is_peer_id
    from swarm_node.swarm.transport.address_groups import address_group
    from swarm_node.swarm.transport.addresses import PeerAddress

    text = data.decode(errors="replace")
    is_dialable(text, IDENTITY.peer_id)
    is_peer_id(text)
    address_group(text)
    outcome = []
    for read in (Invite.parse, PeerAddress.parse, Span.parse):
        try:
            read(text)
        except UsageError:
            continue
        outcome.append(read.__qualname__)
    return ",".join(outcome)


def _mdns() -> Target:
    def prepare() -> Prepared:
        return Prepared([txt_record(IDENTITY.peer_id, ["/ip4/192.168.1.7/tcp/31330"])], run_mdns)

    return Target("mdns", prepare, mutate=havoc, largest=9000)


def run_mdns(data: bytes) -> str:
    return "peer" if read_txt([data]) is not None else "none"


TARGETS: Sequence[Target] = [_records(), _entries(), _texts(), _mdns()]
