"""What ``status`` makes of a directory's content."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
from rich.text import Text

from swarm_node.dht.left_out import LeftOut
from swarm_node.dht.memory import MemoryDirectory, MemoryStore
from swarm_node.node.cli.network import status
from swarm_node.node.cli.network.report import build_report
from swarm_node.node.cli.network.status import run_status
from swarm_node.node.cli.network.tables import parts, print_tables
from swarm_node.node.cli.parser import build_parser
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.types import ModelRef, NodeInfo, NodeState, Span

MODEL = ModelRef("tiny", "ab" * 32, 30)


def _node(peer_id: str, start: int, end: int, model: ModelRef = MODEL) -> NodeInfo:
    return NodeInfo(peer_id, ("/ip4/127.0.0.1/tcp/1",), model, Span(start, end), NodeState.ONLINE)


def test_nodes_are_listed_by_block_and_holes_are_named() -> None:
    report = build_report([_node("b", 20, 30), _node("a", 0, 10)])
    (model,) = report["models"]
    assert model["name"] == "tiny"
    assert model["missing"] == ["10-19"]
    assert [node["blocks"] for node in model["nodes"]] == ["0-9", "20-29"]
    assert set(model["nodes"][0]) == {
        *(
            "peer_id",
            "name",
            "blocks",
            "state",
            "announced_state",
            "decode_ms_per_block",
            "prefill_tokens_per_s",
            "context_ms_per_block",
            "free_kv_tokens",
            "free_states",
            "total_states",
        ),
        *(
            "total_kv_tokens",
            "weights",
            "weights_root",
            "weights_whole",
            "shares_weights",
            "codecs",
            "coarse",
            "device",
            "version",
            "maddrs",
            "direct_maddrs",
        ),
        *("sessions", "tokens_per_s", "queue_ms", "links"),
        *("journal_bytes", "total_journal_bytes", "deterministic", "row_check"),
    }


def test_whoever_gives_no_answer_is_named_and_serves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = build_report([_node("a", 0, 20), _node("stranger", 20, 30)], silent={"stranger"})
    (model,) = report["models"]
    assert (model["missing"], model["silent"]) == (["20-29"], ["stranger"])
    states = [(node["state"], node["announced_state"]) for node in model["nodes"]]
    assert states == [("online", "online"), ("silent", "online")]
    print_tables(report)
    told = capsys.readouterr().out
    assert "did not answer, so not counted: …ranger" in told
    assert next(line for line in told.splitlines() if line.startswith("…ranger")).split()[2] == "silent"
    assert "no peer serves blocks 20-29" in told


def _busy(peer_id: str, **more: Any) -> NodeInfo:
    return replace(
        _node(peer_id, 10, 20),
        state=NodeState.DRAINING,
        weights="int4 (Q4_1)",
        decode_ms_per_block=1.25,
        prefill_tokens_per_s=2500.0,
        free_kv_tokens=12_345,
        total_kv_tokens=65_536,
        direct_maddrs=("/ip4/203.0.113.5/tcp/32331/direct",),
        sessions=128,
        tokens_per_s=1234.5,
        queue_ms=123.4,
        journal_bytes=64 * 2**20,
        total_journal_bytes=256 * 2**20,
        **more,
    )


def test_load_is_shown_and_fits_into_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    busy = _busy("12D3KooWbusy")
    report = build_report([busy])
    (node,) = report["models"][0]["nodes"]
    assert (node["sessions"], node["tokens_per_s"], node["queue_ms"]) == (128, 1234.5, 123.4)
    assert (node["journal_bytes"], node["total_journal_bytes"]) == (64 * 2**20, 256 * 2**20)
    assert (node["deterministic"], node["row_check"]) == (False, "")
    print_tables(report)
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line for line in lines if "…" in line)
    for words in ("draining", "int4 (Q4_1)", "12k 19%", "128", "1234", "123 ", "25%", "12.50"):
        assert words in row
    assert all(len(line.rstrip()) <= 80 for line in lines if "swarm-node" not in line)


def test_states_stand_below_the_kv_cache_and_both_fit(capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = _busy("12D3KooWhybrid", free_states=37, total_states=100, context_ms_per_block=0.25)
    report = build_report([hybrid, _node("b", 20, 30)])
    node, plain = report["models"][0]["nodes"]
    assert (node["free_states"], node["total_states"], node["context_ms_per_block"]) == (37, 100, 0.25)
    assert (plain["free_states"], plain["total_states"]) == (0, 0)
    print_tables(report)
    lines = capsys.readouterr().out.splitlines()
    assert "37/100" in [line.strip() for line in lines]
    assert all(len(line.rstrip()) <= 80 for line in lines if "swarm-node" not in line)
    cards = [str(part) for part in parts(report, (), say=str, narrow=True)]
    assert cards[6:8] == ["  free KV 12k 19%, journal 25%", "  states free for 37/100 sessions"]
    assert all(len(Text.from_markup(line)) <= 40 for line in cards[:9])


def test_a_share_of_experts_stands_on_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    node = replace(_node("12D3KooWmoe", 10, 20), weights="int4 (Q4_0) + float32, 44 % of experts")
    print_tables(build_report([node]))
    lines = capsys.readouterr().out.splitlines()
    assert "44 % experts" in [line.strip() for line in lines]
    assert all(len(line.rstrip()) <= 80 for line in lines if "swarm-node" not in line)


def test_of_many_types_of_weights_two_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    weights = "int5 (Q5_0) + int8 (Q8_0) + Q4_K + Q6_K + float32, transformers"
    report = build_report([replace(_node("12D3KooWgemma", 0, 30), weights=weights)])
    assert report["models"][0]["nodes"][0]["weights"] == weights
    print_tables(report)
    told = capsys.readouterr().out
    for line in ("+ 3 more", "transformers"):
        assert line in [each.strip() for each in told.splitlines()]
    assert "Q5_0 + Q8_0" in told
    assert "Q4_K" not in told


def test_a_node_that_does_not_read_every_codec_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    node = replace(_node("12D3KooWolder1", 0, 30), codecs=("none", "bf16", "fp16", "int8"))
    print_tables(build_report([node, replace(node, peer_id="12D3KooWnewer1", codecs=KINDS)]))
    told = capsys.readouterr().out
    assert "…older1 reads no f8, int8s: rows travel to it in none, bf16, fp16, int8" in told
    assert "…newer1 reads no" not in told


def test_nodes_that_only_their_daemons_reach_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    old = _node("12D3KooWolder1", 0, 30)
    new = replace(old, peer_id="12D3KooWnewer1", direct_maddrs=("/ip4/203.0.113.5/tcp/32331/direct",))
    print_tables(build_report([old, new]))
    assert "  reached through their daemons only: …older1" in capsys.readouterr().out.splitlines()


def test_deterministic_nodes_that_compute_alike_stand_together(capsys: pytest.CaptureFixture[str]) -> None:
    plain = _node("12D3KooWplain1", 0, 30)
    alike = [replace(plain, peer_id=f"12D3KooWalike{n}", row_check="0123456789ab") for n in (1, 2)]
    other = replace(plain, peer_id="12D3KooWother1", row_check="ba9876543210")
    report = build_report([plain, *alike, other])
    found = {node["peer_id"][-6:]: node["deterministic"] for node in report["models"][0]["nodes"]}
    assert found == {"plain1": False, "alike1": True, "alike2": True, "other1": True}
    print_tables(report)
    lines = [line for line in capsys.readouterr().out.splitlines() if "deterministic" in line]
    assert lines == [
        "  deterministic, blocks 0-29, row check 0123456789ab: …alike1, …alike2",
        "  deterministic, blocks 0-29, row check ba9876543210: …other1",
    ]


def test_codecs_that_lose_too_much_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(build_report([replace(_node("12D3KooWreader", 0, 30), coarse=("int8s", "[b]f8"))]))
    told = [line for line in capsys.readouterr().out.splitlines() if "loses much" in line]
    assert told == ["  …reader loses much in int8s, [b]f8: new sessions send it finer rows"]


def test_one_name_with_two_digests_is_two_models() -> None:
    other = ModelRef("tiny", "cd" * 32, 30)
    report = build_report([_node("a", 0, 30), _node("b", 0, 30, other)])
    assert [model["digest"] for model in report["models"]] == ["ab" * 32, "cd" * 32]
    assert all(model["missing"] == [] for model in report["models"])


def test_a_stranger_does_not_rename_a_model_or_make_it_longer() -> None:
    stranger = _node("0", 0, 1, ModelRef("evil", MODEL.digest, 4096))
    (model,) = build_report([stranger, _node("a", 0, 10), _node("b", 10, 30)])["models"]
    assert (model["name"], model["n_blocks"], model["missing"]) == ("tiny", 30, [])
    assert len(model["nodes"]) == 3


def test_an_empty_swarm_has_no_models() -> None:
    assert build_report([]) == {"models": [], "wanted": [], "left_out": [], "alone": False}


def test_who_announces_what_cannot_be_used_is_shown_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = [LeftOut(f"peer{number:03}", "prefill_tps is [5e-324]") for number in range(20)]
    for nodes in ([], [_node("a", 0, 30)]):
        report = build_report(nodes, left_out=odd)
        assert report["left_out"][0] == {"peer_id": "peer000", "reason": "prefill_tps is [5e-324]"}
        print_tables(report)
        shown = capsys.readouterr().out
        assert "left out: …eer000, prefill_tps is [5e-324]" in shown
        assert "left out: 12 more" in shown


@pytest.mark.parametrize("nodes", [[], ["a"]])
def test_a_directory_that_reaches_nobody_is_told(
    nodes: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for is_alone in (False, True):
        report = build_report([_node(name, 0, 30) for name in nodes], is_alone=is_alone)
        assert report["alone"] is is_alone
        print_tables(report)
        told = " ".join(capsys.readouterr().out.split())
        assert ("The peers that were asked reach no other peer of the swarm" in told) is is_alone


async def test_status_asks_the_directory_whether_it_is_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MemoryStore()
    directory = MemoryDirectory(store)

    async def joined(*_: object) -> Namespace:
        return Namespace(directory=directory, transport=None, close=directory.close)

    monkeypatch.setattr(status, "join_as_client", joined)
    for store.is_alone in (False, True):
        await run_status(build_parser().parse_args(["status", "--json"]))
        assert json.loads(capsys.readouterr().out)["alone"] is store.is_alone


def test_a_name_stands_beside_the_id_and_cannot_style_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    named = replace(_node("12D3KooWbusy", 0, 30), name="[red]kitchen[/] of the long name", coarse=("f8",))
    print_tables(build_report([named]))
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("[red]kitchen ") for line in lines)
    assert any(line.startswith("…oWbusy") for line in lines)
    assert (
        "  [red]kitchen[/] of the long name …oWbusy loses much in f8: new sessions send it finer rows"
        in lines
    )
    assert all(len(line.rstrip()) <= 80 for line in lines if "loses" not in line)


def test_on_a_narrow_terminal_each_line_fits_40_columns() -> None:
    node = replace(
        _node("12D3KooWbusy", 10, 20),
        name="kitchen",
        decode_ms_per_block=123.4,
        prefill_tokens_per_s=2500.0,
        free_kv_tokens=12_345,
        total_kv_tokens=65_536,
        sessions=128,
        tokens_per_s=1234.5,
        queue_ms=123.4,
    )
    found = [str(part) for part in parts(build_report([node]), (), say=str, narrow=True)]
    assert found[2] == "[bold]kitchen …oWbusy[/]"
    assert all(len(Text.from_markup(line)) <= 40 for line in found[:8]), found


async def test_watching_prints_a_line_each_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = MemoryStore()
    directory = MemoryDirectory(store)
    joined: list[None] = []

    async def join(*_: object) -> Namespace:
        joined.append(None)
        return Namespace(directory=directory, transport=None, close=directory.close)

    monkeypatch.setattr(status, "join_as_client", join)
    words = build_parser().parse_args(["status", "--json", "--watch", "0.001"])
    watching = asyncio.create_task(run_status(words))
    told = ""
    while told.count("\n") < 3:
        await asyncio.sleep(0)
        told += capsys.readouterr().out
    watching.cancel()
    await asyncio.wait([watching])
    assert {line["alone"] for line in map(json.loads, told.splitlines())} == {False}
    assert len(joined) == 1
