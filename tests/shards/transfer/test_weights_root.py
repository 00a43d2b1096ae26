"""In which order roots are tried: a stranger with one network does not come first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.shards.transfer.weights_root import in_order, likely_roots
from swarm_node.swarm.naming.witnesses import Answers, Witnesses
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("demo", "ab12" * 16, 4)
TRUE, LIE = "11" * 32, "22" * 32


def node(name: str, root: str, *hosts: str, whole: bool = True, shares: bool = True) -> NodeInfo:
    return NodeInfo(
        name,
        tuple(f"/ip4/{host}/tcp/1" for host in hosts),
        MODEL,
        Span(0, 4),
        NodeState.ONLINE,
        weights_root=root,
        weights_whole=whole,
        shares_weights=shares,
    )


def came(*nodes: NodeInfo) -> dict[str, str]:
    return {each.peer_id: each.maddrs[0] for each in nodes}


@given(st.integers(1, 300), st.text(max_size=5), st.booleans())
def test_500_names_of_one_network_come_after_two_witnesses(identities: int, salt: str, whole: bool) -> None:
    honest = [node("a", TRUE, "8.8.8.1"), node("b", TRUE, "7.7.7.1", shares=False)]
    liars = [
        node(f"liar{number}", LIE if number % 2 else f"{number:064x}", f"9.9.9.{number % 250}", whole=whole)
        for number in range(identities)
    ]
    assert in_order([*liars, *honest], came(*honest, *liars), salt=salt)[0] == TRUE


def test_claims_of_networks_count_less_than_an_answer() -> None:
    honest = node("a", TRUE, "192.168.1.5")
    liars = [node(f"liar{n}", LIE, *(f"{k}.{n}.1.1" for k in range(20, 30))) for n in range(50)]
    assert in_order([*liars, honest], came(honest))[0] == TRUE
    assert in_order([*liars, honest])[0] == LIE, "where nobody answers at all"


def test_who_has_fetched_only_repeats_what_he_was_told() -> None:
    witness = node("a", TRUE, "8.8.8.1")
    fetchers = [node(f"f{number}", LIE, f"{number + 20}.1.1.1", whole=False) for number in range(5)]
    assert in_order([*fetchers, witness], came(witness, *fetchers)) == [TRUE, LIE]


def test_what_nobody_shares_cannot_be_fetched() -> None:
    assert in_order([node("a", TRUE, "8.8.8.1", shares=False)]) == []
    assert in_order([node("a", "", "8.8.8.1")]) == []


@given(st.integers(1, 60), st.text(max_size=5), st.booleans())
def test_a_hundred_roots_of_one_machine_have_one_turn_before_anothers(
    roots: int, salt: str, more: bool
) -> None:
    """``more``: each is also announced by nodes that name other machines, and do not answer."""
    honest = node("a", TRUE, "192.168.1.5")
    liars = [node(f"liar{n}", f"{n:064x}", "192.168.1.66") for n in range(roots)]
    silent = [
        node(f"silent{n}.{k}", f"{n:064x}", f"{k}.{n}.1.1") for n in range(roots) for k in (20, 21) if more
    ]
    came_from = {each.peer_id: "/ip4/192.168.1.66/tcp/1" for each in liars} | came(honest)
    found = in_order([*liars, *silent, honest], came_from, salt=salt)
    assert found.index(TRUE) < 2
    assert len(found) == roots + 1


def test_nobody_chooses_a_root_that_comes_first() -> None:
    roots = [f"{number:064x}" for number in range(20)]
    nodes = [node(root, root, "192.168.1.5") for root in roots]
    assert len({in_order(nodes, salt=f"client {number}")[0] for number in range(40)}) > 8


@pytest.mark.parametrize(
    ("true", "lie", "in_doubt"),
    [
        (["8.8.8.1"], [], False),
        (["8.8.8.1"], ["9.9.9.1"], True),
        (["8.8.8.1", "7.7.7.1"], ["9.9.9.1"], False),
    ],
    ids=["one root", "one network each", "two networks against one"],
)
async def test_a_root_is_in_doubt_while_a_stranger_with_one_network_could_have_put_it_first(
    monkeypatch: pytest.MonkeyPatch, true: list[str], lie: list[str], in_doubt: bool
) -> None:
    nodes = [node(host, root, host) for root, hosts in ((TRUE, true), (LIE, lie)) for host in hosts]

    async def ask(self: Witnesses, asked: Sequence[NodeInfo]) -> Answers:
        return Answers(came(*asked))

    monkeypatch.setattr(Witnesses, "ask", ask)
    found = await likely_roots(nodes, MODEL, MemoryNetwork().transport("client"))
    assert found.in_doubt == in_doubt
    assert found.roots[0] == TRUE or in_doubt
