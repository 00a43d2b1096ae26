"""Two models, or two sets of files of one, never share a route: each edge refuses, and says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from swarm_node.node.sessions.handshake import FRAME_OVERHEAD, Terms, answer_hello
from swarm_node.shards.pieces.digest import FileHash, identity_of, what_differs
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.errors import ErrorCode, ModelMismatchError, PeerError
from swarm_node.swarm.links.dialler import Dialler
from swarm_node.swarm.links.link import width_problem
from swarm_node.swarm.links.message_stream import Connection
from swarm_node.swarm.links.pool import LinkPool
from swarm_node.swarm.protocol.messages import ErrorMessage, Hello, Opened, Replay, Welcome
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, Span
from tests.node.chain_swarm import MODEL, ChainSwarm

ONE, OTHER = "12" * 32, "34" * 32
TUNED = replace(MODEL, digest="cd" * 32)
OTHERS = [
    pytest.param(TUNED, id="another model"),
    pytest.param(replace(MODEL, root=OTHER), id="other files of the same digest"),
]


def terms(model: ModelRef) -> Terms:
    return Terms(model, Span(0, 4), ("none",), Boundaries.alike(4, 64), 1 << 20, 512, 0, "test")


def test_a_node_says_how_wide_rows_are_at_the_ends_of_its_span() -> None:
    boundaries = Boundaries((1000, 900, 800, 700, 64), (0, 1, 4))
    mine = replace(terms(MODEL), span=Span(1, 4), boundaries=boundaries)
    welcome = answer_hello(hello(MODEL), mine, "")
    assert (welcome.row_width, welcome.reply_width) == (900, 64)
    assert welcome.max_step_tokens == min(512, ((1 << 20) - FRAME_OVERHEAD) // (4 * 900))
    small = replace(mine, max_frame=FRAME_OVERHEAD + 4 * 900 - 1)
    with pytest.raises(PeerError, match="cannot hold one token of 900 values"):
        answer_hello(hello(MODEL), small, "")


def test_a_node_says_what_its_line_is_limited_to() -> None:
    assert answer_hello(hello(MODEL), terms(MODEL), "").line == 0
    limited = replace(terms(MODEL), line_bytes_per_s=250_000.0)
    assert answer_hello(hello(MODEL), limited, "").line == 250_000


def test_a_client_that_counts_other_values_says_so() -> None:
    welcome = answer_hello(hello(MODEL), terms(MODEL), "")
    assert width_problem(welcome, Boundaries.alike(4, 64), "peer x") is None
    assert width_problem(replace(welcome, row_width=0, reply_width=0), Boundaries.alike(4, 9), "x") is None
    assert width_problem(welcome, Boundaries.alike(3, 9), "peer x") is None, "a span of another model"
    for widths in ((65, 64, 64, 64, 64), (64, 64, 64, 64, 65)):
        problem = width_problem(welcome, Boundaries(widths), "peer x")
        assert isinstance(problem, ModelMismatchError)
        assert "rows of 64 values" in problem.message
        assert "same version" in problem.hint


def hello(model: ModelRef) -> Hello:
    return Hello((1,), model.digest, ("none",), 1 << 20, "test", model.parts, model.root)


def brief(*files: tuple[str, int]) -> str:
    return identity_of(FileHash(name, 1, bytes([content]) * 32) for name, content in files).brief


BASE = [("config.json", 1), ("model.safetensors", 1), ("tokenizer.json", 1)]


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        (BASE, [BASE[0], ("model.safetensors", 2), BASE[2]], "they differ in the weights"),
        (BASE, [*BASE, ("chat_template.jinja", 1)], "in the chat template, which one of them lacks"),
        (BASE, BASE[:2], "in the tokenizer, which one of them lacks"),
        (
            BASE,
            [("config.json", 2), BASE[1], ("tokenizer.json", 2)],
            "in the configuration and the tokenizer",
        ),
        (BASE, [("model.gguf", 1)], "one is a GGUF model, the other a directory of safetensors files"),
        ([("model.gguf", 2)], [("model.gguf", 1)], "they are two GGUF models"),
    ],
)
def test_a_refusal_says_what_differs(
    ours: list[tuple[str, int]], theirs: list[tuple[str, int]], said: str
) -> None:
    client = replace(TUNED, parts=brief(*theirs))
    with pytest.raises(PeerError, match=said) as raised:
        answer_hello(hello(client), terms(replace(MODEL, parts=brief(*ours))), "")
    assert raised.value.code is ErrorCode.MODEL_MISMATCH
    assert MODEL.digest[:12] in raised.value.message
    assert TUNED.digest[:12] in raised.value.message
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("parts", ["", "ab", "ab" * 32])
def test_parts_that_nobody_can_read_say_nothing(parts: str) -> None:
    assert what_differs(parts, brief(*BASE)) == ""


def test_other_files_of_one_digest_are_refused_where_both_are_known() -> None:
    with pytest.raises(
        PeerError, match=f"their root is {ONE[:12]}, that of the client's {OTHER[:12]}"
    ) as raised:
        answer_hello(hello(replace(MODEL, root=OTHER)), terms(replace(MODEL, root=ONE)), "")
    assert raised.value.code is ErrorCode.MODEL_MISMATCH
    assert "@sha256:" in raised.value.hint
    for own, its in (("", ONE), (ONE, ""), (ONE, ONE)):
        assert answer_hello(hello(replace(MODEL, root=its)), terms(replace(MODEL, root=own)), "").root == own


@pytest.mark.parametrize("other", OTHERS)
async def test_a_client_refuses_a_node_that_welcomes_it_for_another(other: ModelRef) -> None:
    """One that does not compare, or lies: the client compares itself."""
    network = MemoryNetwork()

    async def careless(stream) -> None:  # type: ignore[no-untyped-def]
        connection = Connection(stream)
        await connection.receive()
        await connection.send(
            Welcome(1, other.digest, Span(0, 4), ("none",), 1 << 20, "", 64, 4, root=other.root)
        )
        await asyncio.sleep(1)

    await network.transport("node").serve("/swarm-node/1", careless)
    links = LinkPool(network.transport("client"), replace(MODEL, root=ONE))
    link = await links.get("node")
    with pytest.raises(ModelMismatchError, match=r"digest|root") as raised:
        await link.welcome
    assert raised.value.hint
    await links.close()


@pytest.fixture
async def swarm(tiny_span, request: pytest.FixtureRequest) -> AsyncIterator[ChainSwarm]:  # type: ignore[no-untyped-def]
    """Nodes ``a`` and ``c`` of one model, ``b`` of the other."""
    swarm = ChainSwarm(MemoryNetwork())
    mine = replace(MODEL, root=ONE)
    for name, ref in (("a", mine), ("b", request.param), ("c", mine)):
        span = Span(0, 2) if name == "a" else Span(2, 4)
        swarm.add(name, tiny_span(span), ref=ref)
    await swarm.serve()
    yield swarm
    await swarm.close()


@pytest.mark.parametrize("swarm", OTHERS, indirect=True)
async def test_a_hop_chains_to_no_hop_of_another(swarm: ChainSwarm) -> None:
    first, wrong = await swarm.hop("a"), await swarm.hop("b")
    assert isinstance(await swarm.open(wrong, Span(2, 4), upstream="a"), Opened)
    opened = await swarm.open(first, Span(0, 2), downstream=wrong.downstream)
    assert isinstance(opened, Opened)
    assert not opened.chained  # of addresses that are not public nobody is told more
    again, right = await swarm.hop("a"), await swarm.hop("c")
    await swarm.open(right, Span(2, 4), upstream="a")
    opened = await swarm.open(again, Span(0, 2), downstream=right.downstream)
    assert isinstance(opened, Opened)
    assert opened.chained


@pytest.mark.parametrize("swarm", OTHERS, indirect=True)
async def test_nor_replays_its_journal_to_one(swarm: ChainSwarm, hidden_states) -> None:  # type: ignore[no-untyped-def]
    first, right, wrong = await swarm.hop("a"), await swarm.hop("c"), await swarm.hop("b")
    await swarm.open(right, Span(2, 4), upstream="a")
    opened = await swarm.open(first, Span(0, 2), downstream=right.downstream, journal=True)
    assert isinstance(opened, Opened)
    assert opened.chained
    await first.step(1, 0, hidden_states(3, 0).tobytes(), 3)
    await right.result(1)
    await swarm.open(wrong, Span(2, 4), upstream="a")
    await first.control.send(Replay(first.session, 0, 3, 1, wrong.downstream))
    error = await first.control.take(ErrorMessage, first.session)
    assert error.code is ErrorCode.DOWNSTREAM_LOST


@pytest.mark.parametrize("swarm", OTHERS, indirect=True)
async def test_nor_measures_a_link_to_one(swarm: ChainSwarm) -> None:
    dialler = Dialler(swarm.network.transport("a"), replace(MODEL, root=ONE), "test")
    assert await (await dialler.get("c")).ping() >= 0
    with pytest.raises((ModelMismatchError, PeerError), match=r"digest|root"):
        await (await dialler.get("b")).ping()
    await dialler.close()
