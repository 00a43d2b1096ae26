"""In which order roots are tried: a stranger with one network does not come first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.shards.weights_root import in_order
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


def test_nobody_chooses_a_root_that_comes_first() -> None:
    roots = [f"{number:064x}" for number in range(20)]
    nodes = [node(root, root, "192.168.1.5") for root in roots]
    assert len({in_order(nodes, salt=f"client {number}")[0] for number in range(40)}) > 8
