"""Whom a look-up asks: what liars, silence and crowds cost it, without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count

from swarm_node.dht.kademlia.contacts import Contact
from swarm_node.dht.kademlia.paths import AT_ONCE, CREDIT, HEDGE_S, PATHS, Paths

WIDTH = 10
Answers = Callable[[Contact], "tuple[list[Contact], str] | None"]


def at(distance: int) -> Contact:
    """The peer at this distance from the key, which is 0."""
    return Contact(distance, f"peer {distance}")


def lookup(seeds: Iterable[Contact], anchors: Iterable[Contact] = ()) -> Paths:
    return Paths(0, list(seeds), list(anchors), own_id="me", width=WIDTH, enough=5, patience_s=2.0)


def run(paths: Paths, answer: Answers) -> list[int]:
    """Ask until it is over, everybody answering at once. The distances of those who were asked, in order."""
    asked: list[Contact] = []
    while ready := paths.ready(0.0):
        for contact in ready:
            asked.append(contact)
            told = answer(contact)
            if told is None:
                paths.failed(contact)
            else:
                paths.answered(contact, *told)
    assert paths.is_over(0.0)
    return [contact.node_id for contact in asked]


def test_the_nearest_are_found_and_nobody_is_asked_twice() -> None:
    everybody = [at(n) for n in range(1, 200)]

    def answer(contact: Contact) -> tuple[list[Contact], str]:
        nearer = [each for each in everybody if each.node_id >= contact.node_id // 3]
        return nearer[:20], f"group {contact.node_id}"

    paths = lookup([at(n) for n in (150, 160, 170)])
    asked = run(paths, answer)
    assert len(asked) == len(set(asked)) < 60
    assert [contact.node_id for contact in paths.nearest()[:WIDTH]] == list(range(1, WIDTH + 1))


def test_made_up_names_cost_a_few_questions_and_are_laid_to_the_liar() -> None:
    liar = at(1000)
    numbers = count(1)

    def answer(contact: Contact) -> tuple[list[Contact], str] | None:
        if contact == liar:
            return [at(next(numbers)) for _ in range(20)], "liar"
        return ([], f"group {contact.node_id}") if contact.node_id > 1000 else None

    paths = lookup([liar, *(at(n) for n in range(1001, 1012))])
    asked = run(paths, answer)
    assert sum(distance < 1000 for distance in asked) <= CREDIT + AT_ONCE
    assert paths.liars() == [liar.peer_id]
    assert len(paths.nearest()) == 12


def test_a_liar_spoils_one_path_only() -> None:
    """Accomplices without end, all nearer than anybody honest: the other paths go on."""
    honest = [at(10**6 + n) for n in range(30)]
    liar, numbers = at(1), count(10)

    def answer(contact: Contact) -> tuple[list[Contact], str]:
        if contact in honest:
            return honest[:20], f"group {contact.node_id}"
        return [at(next(numbers)) for _ in range(20)], f"hostile {contact.node_id}"

    paths = lookup([liar, honest[20], honest[21]])
    run(paths, answer)
    found = {contact.node_id for contact in paths.nearest()}
    assert {contact.node_id for contact in honest[: WIDTH // 2]} <= found
    assert paths.asked < 120


def test_one_network_does_not_fill_the_neighbourhood_of_a_key() -> None:
    crowd = [at(n) for n in range(1, 200)]
    honest = [at(10**6 + n) for n in range(30)]

    def answer(contact: Contact) -> tuple[list[Contact], str]:
        if contact in honest:
            return [crowd[0], *honest[:19]], f"group {contact.node_id}"
        return crowd[:20], "one network"

    paths = lookup([honest[25], honest[26], honest[27]])
    run(paths, answer)
    nearest = paths.nearest()[:WIDTH]
    assert nearest == [crowd[0], *honest[: WIDTH - 1]]
    assert paths.asked < 60


def test_one_machine_is_a_swarm_as_well() -> None:
    everybody = [at(n) for n in range(1, 9)]
    paths = lookup(everybody[:2])
    run(paths, lambda _: (everybody, "loopback"))
    assert paths.nearest() == everybody


def test_anchors_are_asked_however_far_they_are() -> None:
    near, far = [at(n) for n in range(1, 40)], at(10**9)
    paths = lookup(near[:20], [far, Contact(5, "me")])
    asked = run(paths, lambda contact: (near[:20], f"group {contact.node_id}"))
    assert far.node_id in asked
    assert asked.index(far.node_id) < PATHS


def test_silence_is_not_waited_for() -> None:
    silent = [at(n) for n in range(1, 4)]
    others = [at(n) for n in range(4, 30)]
    paths = lookup([*silent, *others])
    first = paths.ready(0.0)
    assert set(silent) <= set(first)
    for contact in first:
        if contact not in silent:
            paths.answered(contact, [], f"group {contact.node_id}")
    while ready := paths.ready(0.0):
        for contact in ready:
            paths.answered(contact, [], f"group {contact.node_id}")
    assert not paths.is_over(0.0)
    assert 0 < paths.next_look(0.0) <= HEDGE_S
    late = paths.ready(HEDGE_S)  # others in the place of those who are late
    for contact in late:
        paths.answered(contact, [], f"group {contact.node_id}")
    assert paths.is_over(HEDGE_S + 0.001)
    assert silent[0] not in paths.nearest()


def test_where_few_answer_the_late_are_waited_for() -> None:
    paths = lookup([at(1), at(2)])
    paths.ready(0.0)
    paths.answered(at(1), [], "a")
    assert not paths.is_over(1.9)
    assert paths.is_over(2.0)
