"""The state as JSON: what it says of a swarm, and what peers cannot do to it."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.client.dashboard.changes import changes
from swarm_node.client.dashboard.picture import (
    MOST_COMMANDS,
    MOST_NODES,
    Reading,
    node_item,
    own_sections,
    swarm_sections,
    with_peer,
)
from swarm_node.client.dashboard.source import Counters, OwnWork, RunningAnswer, SeenRepair
from swarm_node.dht.left_out import LeftOut
from swarm_node.swarm.types import ModelRef, PeerLink, Span
from tests.client.dashboard.simulated import (
    LLAMA,
    SMOL,
    route_over,
    simulated_swarm,
    three_nodes,
    wanted_by,
)


def test_gaps_and_single_servers_have_the_command_that_helps() -> None:
    nodes = three_nodes()[:2]
    sections = swarm_sections(Reading(nodes), partial(with_peer, "/ip4/10.0.0.1/tcp/1/p2p/x"))
    model = sections["models"][SMOL.digest]
    assert model["coverage"] == [[0, 19, 1], [20, 29, 0]]
    begin = "swarm-node serve --model SmolLM2-135M-Instruct --blocks"
    end = "--initial-peers /ip4/10.0.0.1/tcp/1/p2p/x"
    assert model["commands"] == {"20-29": f"{begin} 20-29 {end}", "0-19": f"{begin} 0-19 {end}"}
    assert sections["swarm"]["online"] == 2


def test_two_models_of_one_name_are_told_apart_in_commands() -> None:
    other = replace(three_nodes()[0], peer_id="other", model=replace(SMOL, digest="ef" * 32))
    sections = swarm_sections(Reading([*three_nodes(), other]), str)
    (command, _) = sections["models"]["ef" * 32]["commands"].values()
    assert " --model SmolLM2-135M-Instruct@efefefef" in command


def test_what_one_node_says_of_a_model_counts_less_than_what_most_say() -> None:
    liar = replace(three_nodes()[0], peer_id="a", model=replace(SMOL, name="other", n_blocks=4096))
    model = swarm_sections(Reading([liar, *three_nodes()]), str)["models"][SMOL.digest]
    assert (model["name"], model["blocks"]) == (SMOL.name, SMOL.n_blocks)


def test_what_is_wanted_and_left_out_is_told() -> None:
    reading = Reading(three_nodes(), [wanted_by("p", "gemma-3")], [LeftOut("q", "a bad record")], alone=True)
    sections = swarm_sections(reading, str)
    assert [item["name"] for item in sections["wanted"].values()] == ["gemma-3"]
    assert sections["left_out"] == {"q": "a bad record"}
    assert sections["swarm"]["alone"]


HOSTILE = st.text(min_size=0, max_size=3000)
WILD = st.floats(allow_nan=True, allow_infinity=True)


@given(HOSTILE, HOSTILE, WILD, WILD)
def test_nothing_a_peer_says_breaks_the_json_or_a_shell(
    name: str, words: str, value: float, rtt: float
) -> None:
    model = ModelRef(name, "aa" * 32, 30)
    node = replace(
        three_nodes()[0],
        model=model,
        weights=words,
        version=words,
        tokens_per_s=value,
        queue_ms=value,
        decode_ms_per_block=value,
        prefill_tokens_per_s=value,
        links=(PeerLink("peer", rtt, value),) * 20,
    )
    answer = RunningAnswer("1", words, (), value, 3, value, words, 0)
    repair = SeenRepair("1/1", 0.0, "1", words, "replay", ("lost",) * 40, words, value)
    finite = replace(answer, age_s=1.0)
    state = {**swarm_sections(Reading([node]), str), **own_sections([finite], [repair], None, None, 0.0)}
    text = json.dumps(state, allow_nan=False)
    assert len(text) < 20_000
    for said in (state["nodes"][node.peer_id]["weights"], state["models"][model.digest]["name"]):
        assert len(said) <= 100
        assert said.isprintable() or all(
            char.isprintable() or char == "\t" or ord(char) > 127 for char in said
        )
    for command in state["models"][model.digest]["commands"].values():
        assert shlex.split(command)[:3] == ["swarm-node", "serve", "--model"]
        assert shlex.split(command)[3] == name


def test_a_large_swarm_is_cut_and_counted() -> None:
    nodes = simulated_swarm(MOST_NODES + 500)
    sections = swarm_sections(Reading(nodes), str)
    assert len(sections["nodes"]) == MOST_NODES
    assert sections["swarm"]["not_shown"] == 500
    assert sections["swarm"]["nodes"] == MOST_NODES + 500
    assert len(json.dumps(sections)) < 2_000_000


def test_a_model_of_many_gaps_has_few_commands() -> None:
    chance = simulated_swarm(1)[0]
    nodes = [
        replace(chance, peer_id=f"p{i}", span=Span(2 * i, 2 * i + 1), links=())
        for i in range(LLAMA.n_blocks // 2)
    ]
    model = swarm_sections(Reading(nodes), str)["models"][LLAMA.digest]
    assert len(model["commands"]) == MOST_COMMANDS
    assert len(model["coverage"]) == LLAMA.n_blocks


def test_own_figures_are_numbers_and_names() -> None:
    nodes = three_nodes()
    route = route_over(nodes, 30)
    answer = RunningAnswer("7", "m", route, 5.0, 40, 12.34, "waiting for blocks 0-9", 1)
    work = OwnWork("p", 60.4, 10, 20, 2, 1, 5, 6, 0)
    own = own_sections([answer], [], Counters(answers=3), work, 1000.0)
    assert own["answers"]["7"]["hops"] == [[hop.peer_id, hop.span.start, hop.span.end - 1] for hop in route]
    assert own["answers"]["7"]["began"] == 995.0
    assert own["own"]["counters"]["answers"] == 3
    assert own["own"]["work"]["uptime_s"] == 60


def test_changes_are_what_became_different_and_make_the_same_state() -> None:
    one = swarm_sections(Reading(three_nodes()), str)
    other = swarm_sections(Reading([replace(three_nodes()[0], sessions=99), *simulated_swarm(4)]), str)
    assert changes(one, one) == {}
    difference = changes(one, other)
    for section, items in other.items():
        made = {**one[section], **difference.get(section, {}).get("set", {})}
        for key in difference.get(section, {}).get("gone", ()):
            del made[key]
        assert made == items


def test_memory_for_states_is_told_beside_that_for_tokens() -> None:
    hybrid = replace(three_nodes()[0], free_states=3, total_states=8)
    item = node_item(hybrid)
    assert (item["states_free"], item["states_total"]) == (3, 8)
    assert (item["kv_free"], item["kv_total"]) == (hybrid.free_kv_tokens, hybrid.total_kv_tokens)
