"""scripts/wan_lab spec without a network: stand-ins for drafts, the bound, the verdict, the tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.lab.wan_lab.__main__ import parse
from scripts.lab.wan_lab.spec import bench as spec_bench
from scripts.lab.wan_lab.spec.bench import SpecBench
from scripts.lab.wan_lab.spec.bound import Stages, law, least_s, line_s
from scripts.lab.wan_lab.spec.cases import PARTS, Arm, Case, cases
from scripts.lab.wan_lab.spec.client import Asking
from scripts.lab.wan_lab.spec.command import measure, merged, named_rates
from scripts.lab.wan_lab.spec.figures import case_figures, harmless_figures, problems, stages
from scripts.lab.wan_lab.spec.forced import ForcedText
from scripts.lab.wan_lab.spec.llama import figures as llama_figures
from scripts.lab.wan_lab.spec.llama_worker import answer, lookup
from scripts.lab.wan_lab.spec.others import WAYS, others_figures
from scripts.lab.wan_lab.spec.prompts import hundred, replaced
from scripts.lab.wan_lab.spec.stand_in import KnownAnswer, StandIn, trips_needed
from scripts.lab.wan_lab.spec.tables import print_markdown, print_spec, tables
from tests.doubles.fake_swarm import BOS, FakeSwarm, expected
from tests.doubles.toy_model import ToyTokenizer

PROMPT = [BOS, *b"Say something."]


# Drafts whose chances are known.


@pytest.mark.parametrize("share", [1.0, 0.97, 0.74])
def test_a_stand_in_is_right_as_often_as_asked_and_at_the_same_places_always(share: float) -> None:
    stand_in = StandIn((share,), 0.12)
    rights = [stand_in.is_right(number) for number in range(300)]
    assert sum(rights) == round(300 * share)
    assert rights == [StandIn((share,)).is_right(number, depth=3) for number in range(300)]
    assert rights != [StandIn((share,), seed=2).is_right(number) for number in range(300)] or share == 1
    seconds = [stand_in.is_second_right(number) for number in range(300)]
    assert sum(seconds) == round(300 * min(0.12, 1 - share))
    assert not any(first and second for first, second in zip(rights, seconds, strict=True))
    assert sum(stand_in.is_among_two(number) for number in range(300)) == sum(rights) + sum(seconds)


def test_a_stand_in_survives_json() -> None:
    stand_in = StandIn((0.9, 0.5), 0.1, 4, 0.01, 7)
    assert StandIn.of(json.loads(json.dumps(stand_in.as_dict()))) == stand_in


async def test_guesses_follow_what_came_and_what_was_guessed() -> None:
    known = [*range(100, 140)]
    stand_in = StandIn((0.7,), 0.2, most=5)
    source = KnownAnswer(known, stand_in).begin([1, 2], 99)
    source.came(known[:3], np.zeros((3, 1)))
    for depth in range(5):
        guess = await source.guess(known[3 : 3 + depth])
        assert guess is not None
        assert guess.second is not None
        assert (guess.token == known[3 + depth]) == stand_in.is_right(3 + depth)
        assert (guess.second[0] == known[3 + depth]) == stand_in.is_second_right(3 + depth)
        assert (guess.chance, guess.second[1]) == (0.7, 0.2)
        assert guess.token != guess.second[0]
    assert await source.guess(known[3:8]) is None, "beyond the most that it guesses"
    source.came(known[3:], np.zeros((37, 1)))
    assert await source.guess(()) is None, "beyond the answer's end"


def _fewest(tokens: int, right: Sequence[bool]) -> int:
    """Trips to know all of ``tokens`` tokens, of which the first is known, trying every length of a draft."""
    if tokens <= 1:
        return 0
    fewest = tokens
    for length in range(tokens):
        came = 1
        while came <= length and came < len(right) and right[came]:
            came += 1
        fewest = min(fewest, 1 + _fewest(tokens - came, right[came:]))
    return fewest


def test_the_least_number_of_trips_is_that_of_the_best_lengths() -> None:
    for right in product((False, True), repeat=6):
        assert trips_needed(6, right.__getitem__) == _fewest(6, right), right
    assert trips_needed(6, lambda number: True) == 1
    assert trips_needed(1, lambda number: True) == 0


# The bound.


def test_the_law() -> None:
    assert law((0.74,)) == pytest.approx(1 / 0.26)
    assert law((0.86,)) == pytest.approx(1 / 0.14)
    assert law((1.0,)) == float("inf")
    assert law((0.5,), most=2) == pytest.approx(1.75)
    assert law((0.9, 0.5), most=2) == pytest.approx(1 + 0.9 + 0.45)
    assert law((0.9, 0.5)) == pytest.approx(1 + 0.9 / 0.5)
    stand_in = StandIn((0.74,))
    tokens = 100_000
    assert (tokens - 1) / trips_needed(tokens, stand_in.is_right) == pytest.approx(law((0.74,)), rel=0.01)


def test_the_bound_is_misses_and_rows_at_the_slowest_stage() -> None:
    assert Stages((0.002, 0.003, 0.001), 0.001, 0.0, cores=9).row_s == 0.003
    assert Stages((0.002, 0.003, 0.001), 0.001, 0.005, cores=9).row_s == 0.005
    assert Stages((0.002, 0.003, 0.001), 0.002, 0.0, cores=2).row_s == pytest.approx(0.004)
    assert line_s(604, 20e6) == pytest.approx(604 * 8 / 20e6)
    assert line_s(604, None) == 0
    assert least_s(201, 1, 0.2, 0.004) == pytest.approx(0.2 + 199 * 0.004)
    assert least_s(201, 200, 0.2, 0.004) == pytest.approx(200 * 0.2)


# Cases.


class Words(ToyTokenizer):
    """A token a byte, as the toy model's; no begin-of-text token."""

    def encode(self, text: str, add_special: bool = True, **_: Any) -> list[int]:
        return list(text.encode())


def test_cases_are_those_of_the_parts() -> None:
    tokenizer: Any = Words()
    made = cases(PARTS, tokenizer, quick=False)
    assert [case.part for case in made] == ["copy", "replaced", "rows", "stand-ins", *["novel"] * 4]
    assert len(made[3].arms) == 5
    copy, changed = made[0], made[1]
    assert copy.forced is not None
    assert changed.forced is not None
    assert len(copy.forced) == copy.new_tokens >= 200
    assert set(copy.forced) <= set(copy.prompt)
    differing = [
        n for n, pair in enumerate(zip(copy.forced, changed.forced, strict=True)) if len({*pair}) > 1
    ]
    assert differing == list(range(30, copy.new_tokens, 30))
    guessed = changed.arms[0].guessed
    assert guessed is not None
    assert trips_needed(changed.new_tokens, guessed) == 1 + len(differing)
    only = cases(["trees"], tokenizer, quick=True)
    block = made[3].arms[-1]
    assert block.least_trips(345) == pytest.approx(344 / law((0.88, 0.82, 0.71, 0.64), 4))
    assert made[4].arms[0].least_trips(64) is None
    assert [arm.goal for case in only for arm in case.arms] == [3.8]
    assert cases(["harmless"], tokenizer, quick=True) == []


def test_a_replaced_word_is_another_one() -> None:
    assert replaced([7] * 10, [7, 8], every=3) == [7, 7, 7, 8, 7, 7, 8, 7, 7, 8]


def test_a_hundred_prompts_of_ten_kinds() -> None:
    asked = hundred()
    assert len({json.dumps(each.messages) + json.dumps(each.options) for each in asked}) == 100
    assert len({each.kind for each in asked[:10]}) == 10
    assert sum(each.schema is not None for each in asked) == 10
    assert sum("temperature" in each.options for each in asked) == 30


def test_a_forced_text_leaves_no_choice_and_does_not_tell() -> None:
    rule = ForcedText([5, 6])
    other = rule.copy()
    assert rule.allowed().tolist() == [5]
    assert rule.allows(5)
    assert not rule.allows(6)
    rule.accept(5)
    rule.accept(6)
    assert rule.is_over
    assert rule.forced() == ()
    assert not other.is_over


@pytest.mark.slow
async def test_the_client_answers_as_it_is_asked() -> None:
    swarm = await FakeSwarm(0.003, a="0-1", b="2-3", c="4-5").start()
    options = {"max_new_tokens": 40, "ignore_eos": True}
    async with swarm.client() as model:
        asking = Asking(model)
        try:
            plain = await asking.answer(prompt=PROMPT, options={**options, "speculate": "off"})
            known = plain["token_ids"]
            right = StandIn((1.0,)).as_dict()
            told = await asking.answer(prompt=PROMPT, options=options, known=known, stand_in=right)
            text = [*b"Say something. Say something. Say something."][:40]
            forced = await asking.answer(prompt=PROMPT, options=options, forced=text)
        finally:
            await asking.close()
    assert known == expected(PROMPT, 40) == told["token_ids"]
    assert plain["speculation"]["drafted"] == 0
    assert plain["rows"] == [39] * 3
    assert told["speculation"]["accepted"] > 0
    assert forced["token_ids"] == text
    json.dumps([plain, told, forced])


# What is reported.


def _run(seconds: float, ids: Sequence[int] = (), **told: int) -> dict[str, Any]:
    counts = {"passes": 10, "drafted": 0, "accepted": 0, **told}
    hops = {"rows": [10, 10, 10], "steps": [5, 5, 5], "compute_s": [0.03, 0.02, 0.01], "queue_s": [0.0] * 3}
    basics = {"tokens": 11, "decode_s": seconds, "local_s": 0.011, "repairs": 0}
    return {"token_ids": list(ids) or [1, 2, 3], "speculation": counts, **basics, **hops}


def _case(goal: float = 3.0) -> Case:
    stand_in = StandIn((1.0,))
    return Case("chains", "text", PROMPT, 11, (Arm("all right", stand_in, stand_in.is_right, None, goal),))


def _figures(*, ids: Sequence[int] = (), goal: float = 3.0) -> dict[str, Any]:
    plain = [_run(2.0), _run(2.2), _run(1.8)]
    runs = [_run(0.5), _run(0.55), _run(0.6, ids, passes=2, drafted=9, accepted=9)]
    row_s = stages([*plain, *runs], 0.0, cores=2).row_s
    found = case_figures(_case(goal), plain, {"all right": runs}, row_s)
    return {**found, "rate": 1e8, "rate_name": "100mbit"}


def test_a_case_is_compared_with_the_plain_answer_of_its_round_and_with_the_bound() -> None:
    found = _figures()
    (arm,) = found["arms"]
    assert arm["ratios"] == [pytest.approx(4), pytest.approx(4), pytest.approx(3)]
    assert arm["times"] == pytest.approx(4)
    assert found["row_s"] == pytest.approx((0.003 + 0.002 + 0.001 + 0.001) / 2)
    assert found["trip_s"] == pytest.approx(0.2)
    assert arm["least_trips"] == 1
    assert arm["rows_a_step"] == 2
    assert arm["bound_s"] == pytest.approx(0.2 + 9 * 0.0035)
    assert arm["bound_times"] == pytest.approx(2.0 / arm["bound_s"])
    assert arm["share"] == pytest.approx(arm["bound_s"] / 0.55)
    assert arm["reached"]
    assert problems([found]) == []
    other = _figures(ids=[1, 2, 4], goal=5.0)
    assert not other["arms"][0]["reached"]
    assert problems([other]) == ["text at 100mbit: an answer is not the plain one"]


def _pair(name: str, *speculating: float) -> dict[str, Any]:
    rounds = [[_run(1.0), _run(seconds, passes=9, drafted=3), _run(1.2)] for seconds in speculating]
    return {"kind": name.split()[0], "name": name, "rounds": rounds}


def test_prompts_are_compared_with_the_plain_answers_around_them() -> None:
    found = harmless_figures(
        [_pair("code 1", 1.1), _pair("code 2", 1.2), _pair("chat 1", 1.25, 1.1, 1.0)], 0.97
    )
    assert (found["prompts"], found["below"]) == (3, 1)
    assert found["least"] == pytest.approx(1.1 / 1.2)
    assert found["median"] == pytest.approx(1.0)
    assert found["noise_least"] == pytest.approx(1 / 1.2)
    assert found["noise_below"] == 3
    assert found["more_trips"] == 0
    assert found["row_s"] == pytest.approx(0.003 + 0.002 + 0.001 + 0.001)
    assert found["each"][0]["counted"] == pytest.approx(10 * 0.11 / (9 * 0.11 + 0.007))
    assert found["counted_below"] == 0
    assert found["void_rows"] == 9
    assert found["kinds"]["code"]["median"] == pytest.approx((1 + 1.1 / 1.2) / 2)
    assert found["each"][2]["first_times"] == pytest.approx(1.1 / 1.25)
    assert found["identical"]


def test_another_user_is_compared_with_himself() -> None:
    runs = {way: [_run(seconds)] for way, seconds in zip(WAYS, (1.0, 2.0, 2.5), strict=True)}
    found = others_figures(runs, {way: [_run(4.0)] if way != "alone" else [] for way in WAYS})
    assert found["times"] == pytest.approx(0.8)
    assert found["times_alone"] == pytest.approx(0.4)
    assert set(found["others_tokens_per_s"]) == {"beside plain", "beside speculating"}


def _report() -> dict[str, Any]:
    runs = {way: [_run(1.0)] for way in WAYS}
    llama = [{0: {"tokens": 11, "tokens_per_s": 2.0, "batches": 10}}]
    llama[0] |= {ahead: {"tokens": 11, "tokens_per_s": 8.0, "batches": 2} for ahead in (16, 64)}
    return {
        "conditions": {"model": "m", "seconds": 4.5},
        "results": [_figures()],
        "links": [],
        "harmless": {**harmless_figures([_pair("code 1", 1.0)], 0.97), "rtt_ms": 20.0},
        "others": others_figures(runs, {}),
        "llama_cpp": {
            "version": "1",
            "results": [{**each, "rate_name": "100mbit"} for each in llama_figures("copy", llama)],
        },
        "problems": ["something"],
    }


def test_tables_hold_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(json.dumps(_report()))
    shown = list(tables(report))
    assert len(shown) == 5
    assert all(len(row) == len(table.headings) for table in shown for row in table.rows)
    print_markdown(report)
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("| text: all right | 100mbit | 11 | 5.00 | 18.2 | 4.00 (3.00 to 4.00)")
        for line in lines
    )
    assert any(
        line.startswith("| copy: lookup, 16 tokens at most | 100mbit | 11 | 2.00 | 8.0 | 4.00 |")
        for line in lines
    )
    print_spec(report)
    said = capsys.readouterr().err
    assert "failed: something" in said
    assert "model m" in said


# Its command line.


def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parsed = parse(["spec", "--quick", "--parts", "copy,trees", "--rates", "1gbit,none"])
    assert (parsed.repeat, parsed.parts, parsed.rtt) == (1, ["copy", "trees"], 0.1)
    assert parsed.rates == [("1gbit", 1e9), ("none", None)]
    assert parse(["spec"]).rates == named_rates("100mbit,20mbit")
    assert parse(["spec"]).repeat == 3
    file = tmp_path / "report.json"
    file.write_text(json.dumps(_report()))
    assert measure(parse(["spec", "--from-json", str(file), "--markdown"])) == 1, "it has a problem"
    assert "| text: all right |" in capsys.readouterr().out
    other = tmp_path / "other.json"
    conditions = {"model": "n", "seconds": 3.0}
    other.write_text(json.dumps({"conditions": conditions, "results": [_figures()], "problems": []}))
    whole = merged([file, other])
    assert whole["conditions"] == {"model": "n", "seconds": 7.5}
    assert len(whole["results"]) == 2
    assert whole["problems"] == ["something"]
    assert "harmless" in whole


def test_a_run_asks_plainly_and_speculating_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def told(self: SpecBench, client: Any, order: dict[str, Any]) -> dict[str, Any]:
        asked.append((order["options"].get("speculate", "auto"), order.get("known")))
        return _run(1.0)

    class Lab:
        def set_all(self, **_: Any) -> None: ...

        def set_every_machine(self, **_: Any) -> None: ...

    monkeypatch.setattr(SpecBench, "_answer", told)
    monkeypatch.setattr(spec_bench, "hundred", lambda: hundred()[:1])
    bench = SpecBench(parse(["spec", "--repeat", "2"]))
    lab: Any = Lab()
    (found,) = bench._cases(lab, None, [_case()], "100mbit", 1e8)  # type: ignore[arg-type]
    assert [how for how, _ in asked] == ["auto", "off", "auto", "off", "auto"]
    assert [known for _, known in asked] == [None, None, [1, 2, 3], None, [1, 2, 3]]
    assert found["arms"][0]["times"] == 1
    asked.clear()
    assert bench._harmless(lab, None)["prompts"] == 1  # type: ignore[arg-type]
    assert [how for how, _ in asked] == ["auto", "off", "auto", "off"]


# llama.cpp.


def test_a_lookup_goes_on_behind_the_longest_latest_match() -> None:
    ids = [1, 2, 3, 9, 2, 3, 4, 8, 2, 3]
    assert lookup(ids, 3) == [4, 8, 2]
    assert lookup([1, 2, 3], 3) == []
    assert lookup(ids, 0) == []


class Rows:
    """In the place of LlamaCpp: keeps the rows and checks that they follow each other."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.batches: list[int] = []

    def clear(self) -> None:
        self.ids.clear()
        self.batches.clear()

    def forget(self, sequence: int, position: int) -> None:
        del self.ids[position:]

    def run(self, rows: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        assert [place for _, place, _, _ in rows] == list(range(len(self.ids), len(self.ids) + len(rows)))
        self.ids += [token for token, *_ in rows]
        self.batches.append(len(rows))
        return []


@pytest.mark.parametrize("ahead", [0, 3, 16])
def test_the_loop_beside_feeds_the_forced_text_and_nothing_else(ahead: int) -> None:
    model, text = Rows(), [10, 11, 12, 13, 14, 15, 16, 17]
    forced = [*text[:4], 99, *text[5:]]
    told = answer(model, prompt=text, forced=forced, ahead=ahead)
    assert model.ids == [*text, *forced[:-1]]
    assert told["tokens"] == len(forced)
    assert told["batches"] == len(model.batches) - 1
    assert (told["batches"] == len(forced) - 1) == (ahead == 0)


@pytest.mark.parametrize("text", [b"# Read me", b'{"a": 1}', b"[]", b"\xff"])
def test_a_file_that_is_no_report_is_named(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "other.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=r"other\.json is no report"):
        merged([file])
