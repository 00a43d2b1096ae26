"""The choice among the paths to a peer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.transport.paths.choice import (
    FASTER_S,
    FIRST_REST_S,
    LONGEST_REST_S,
    NEXT_PATH_S,
    PathRecord,
    Start,
    choose,
)

PATHS = ("direct", "relayed", "daemon")
SECONDS = st.floats(0, 10_000)
RECORDS = st.builds(
    PathRecord,
    worked_at=st.none() | SECONDS,
    failed_at=SECONDS,
    failures=st.integers(0, 2000),
    round_trip_s=st.just(0.0) | st.floats(1e-5, 2.0),
)
KNOWN = st.dictionaries(st.sampled_from(PATHS), RECORDS)
KEPT = st.sampled_from(("", *PATHS))
ROUND_TRIPS = st.floats(1e-4, 1.0)


def working(round_trip_s: float = 0.0) -> PathRecord:
    return PathRecord(worked_at=1.0, round_trip_s=round_trip_s)


@given(KNOWN, KEPT, SECONDS)
def test_every_choice_begins_at_once_and_tries_each_path_once(
    known: dict[str, PathRecord], kept: str, now: float
) -> None:
    starts = choose(PATHS, known, kept, now)
    named = [start.path for start in starts]
    assert starts[0].after_s == 0.0
    assert len(set(named)) == len(named)
    assert [start.after_s for start in starts] == sorted(start.after_s for start in starts)
    resting = {path for path in PATHS if path in known and known[path].rests(now)}
    assert set(named) == (set(PATHS) - resting or set(PATHS))


@given(KNOWN, KEPT, SECONDS)
def test_a_path_that_failed_never_delays_one_that_did_not(
    known: dict[str, PathRecord], kept: str, now: float
) -> None:
    starts = choose(PATHS, known, kept, now)
    sound = [start for start in starts if not known.get(start.path, PathRecord()).failures]
    if sound:
        assert sound[0] == Start(starts[0].path, 0.0)


@given(st.lists(SECONDS, min_size=1, max_size=40))
def test_a_rest_grows_and_ends(gaps: list[float]) -> None:
    now, record, last = 0.0, PathRecord(), 0.0
    for gap in gaps:
        now += gap
        record = record.failed(now)
        rest_s = min(LONGEST_REST_S, FIRST_REST_S * 2.0 ** (record.failures - 1))
        assert rest_s >= last
        assert record.rests(now + 0.9 * rest_s)
        assert not record.rests(now + 1.1 * rest_s)
        last = rest_s
    assert not record.worked(now).rests(now)


@given(st.lists(st.floats(0, FASTER_S * 0.99), min_size=1, max_size=50), KEPT)
def test_small_changes_of_a_round_trip_move_nothing(noise: list[float], kept: str) -> None:
    lead = choose(PATHS, dict.fromkeys(PATHS, working(0.02)), kept, 5.0)[0].path
    for number, seconds in enumerate(noise):
        known = {path: working(0.02 + seconds * (number % 2)) for path in PATHS}
        known[lead] = working(0.02 + seconds)
        assert choose(PATHS, known, lead, 5.0)[0].path == lead


@given(ROUND_TRIPS, ROUND_TRIPS)
def test_two_paths_are_never_each_clearly_faster(one: float, other: float) -> None:
    known = {"direct": working(one), "daemon": working(other)}
    paths = ("direct", "daemon")
    leads = {kept: choose(paths, known, kept, 5.0)[0].path for kept in paths}
    assert leads["direct"] == "direct" or leads["daemon"] == "daemon"


def test_what_is_preferred_is_tried_first_and_the_next_beside_it() -> None:
    assert choose(PATHS, {}, "", 0.0) == [
        Start("direct", 0.0),
        Start("relayed", NEXT_PATH_S),
        Start("daemon", 2 * NEXT_PATH_S),
    ]


def test_a_path_that_becomes_known_is_preferred_to_the_one_that_was_kept() -> None:
    known = {"daemon": working(0.001)}
    assert choose(("direct", "daemon"), known, "daemon", 5.0)[0] == Start("direct", 0.0)


def test_what_failed_is_tried_again_beside_what_works() -> None:
    known = {"direct": PathRecord(failed_at=0.0, failures=1), "daemon": working()}
    paths = ("direct", "daemon")
    assert choose(paths, known, "daemon", 1.0) == [Start("daemon", 0.0)]
    assert choose(paths, known, "daemon", FIRST_REST_S) == [Start("daemon", 0.0), Start("direct", 0.0)]


def test_a_clearly_faster_path_is_taken() -> None:
    known = {"direct": working(0.030), "daemon": working(0.010)}
    assert choose(("direct", "daemon"), known, "direct", 5.0)[0].path == "daemon"
    known = {"direct": working(0.300), "daemon": working(0.290)}  # far away: noise
    assert choose(("direct", "daemon"), known, "direct", 5.0)[0].path == "direct"


def test_a_shorter_round_trip_counts_at_once_and_a_longer_one_little() -> None:
    record = PathRecord().answered(0.1).answered(0.01)
    assert record.round_trip_s == 0.01
    assert 0.01 < record.answered(1.0).round_trip_s < 0.5
