"""What somebody can do who sends strange rows, from one identity or from many in one network: nothing to the
scales of others, nor to the verdict that most others have a say in. From as many networks as honest ones, he
can make rows travel in more bytes, and not in worse ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from swarm_node.swarm.codecs.codec import Codec
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import BF16, F8
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.fidelity.error_watch import GOOD_ERROR, REMEMBERED_S
from swarm_node.swarm.fidelity.row_error import exact_errors
from swarm_node.swarm.fidelity.row_reader import RowReader
from swarm_node.swarm.fidelity.row_sampler import EVERY
from swarm_node.swarm.transport.address_groups import address_group

WIDTH = 64
CHANNELS = np.exp2(np.random.default_rng(1).normal(0, 3, WIDTH))
"""Sizes of channels as Gemma 3 has them: within 2^8 of each other, mostly."""
WEIGHTS = np.exp(np.random.default_rng(2).normal(0, 0.5, WIDTH)).astype(np.float32)
BOUND = 1.1
"""What hostile rows may make of the error of others: a tenth more than it is without them."""
SESSION = 8 * EVERY
"""Tokens of a session."""
HONEST = [f"/ip4/9.{number}.0.1/tcp/1" for number in range(3)]
STRANGERS = [f"/ip4/8.8.4.{number}/tcp/1" for number in range(1, 6)]
"""Of one network."""
NEWCOMER = address_group("/ip4/11.0.0.1/tcp/1")


def rows(count: int, seed: int, sizes: np.ndarray = CHANNELS) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, WIDTH)) * sizes).astype(np.float32)


def half_of_them_huge(count: int, seed: int) -> np.ndarray:
    return rows(count, seed, np.where(np.arange(WIDTH) % 2, CHANNELS, CHANNELS * 2**24))


def upside_down(count: int, seed: int) -> np.ndarray:
    return rows(count, seed, 1 / CHANNELS)


def one_channel(count: int, seed: int) -> np.ndarray:
    return rows(count, seed, np.eye(WIDTH)[7] * 2**30)


def nothing(count: int, seed: int) -> np.ndarray:
    return np.zeros((count, WIDTH), np.float32)


def anything(count: int, seed: int) -> np.ndarray:
    return rows(count, seed, np.exp2(np.random.default_rng(seed).uniform(-30, 30, WIDTH)))


ATTACKS = [half_of_them_huge, upside_down, one_channel, nothing, anything]


def session(reader: RowReader, codec: Codec, x: np.ndarray, maddr: str) -> None:
    payload, group = codec.encode(x), address_group(maddr)
    reader.sampler.took(codec, payload, 0, len(x), group, maddr)
    reader.sampler.learn(codec.decode(payload, *x.shape), 0, group)


def wanted(reader: RowReader, maddr: str) -> Codec:
    """As a client without a certificate negotiates it."""
    table = reader.table_for(address_group(maddr))
    return BF16 if table is None else Int8sCodec.of(table)


def error(table: ScaleTable) -> float:
    """Of honest rows that were not seen."""
    x = rows(200, 10_000)
    codec = Int8sCodec.of(table)
    return float(
        exact_errors(x, codec.decode(codec.encode(x), *x.shape), np.square(WEIGHTS, dtype=np.float64)).mean()
    )


@pytest.fixture(scope="module")
def undisturbed() -> float:
    reader = RowReader(WEIGHTS, lambda: 0.0)
    session(reader, BF16, rows(SESSION, 0), HONEST[0])
    reader.look()
    table = reader.table_for(address_group(HONEST[0]))
    assert table is not None
    return error(table)


@pytest.mark.parametrize("strangers", [STRANGERS[:1], STRANGERS], ids=["one identity", "five of one network"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("honest", [0, 1, 2])
@pytest.mark.parametrize("order", ["before", "after", "between"])
def test_strange_rows_spoil_no_scales_of_others(
    undisturbed: float,
    honest: int,
    attack: Callable[[int, int], np.ndarray],
    strangers: list[str],
    order: str,
) -> None:
    """Whoever else asks gets scales that are as good as without the stranger, or none."""
    reader = RowReader(WEIGHTS, lambda: 0.0)
    seen: set[str] = set()

    def strange(times: int) -> None:
        for number in range(times):
            maddr = strangers[number % len(strangers)]
            session(reader, (BF16, F8, wanted(reader, maddr))[number % 3], attack(SESSION, number), maddr)

    def check() -> None:
        reader.look()
        assert address_group(STRANGERS[0]) == address_group(STRANGERS[-1])
        for group in [*map(address_group, HONEST), NEWCOMER]:
            if (table := reader.table_for(group)) is not None:
                assert error(table) <= BOUND * undisturbed < GOOD_ERROR
                seen.add(group)

    for turn in range(3):
        if (order, turn) in {("before", 0), ("after", 1)} or order == "between":
            strange(10)
            check()
        for number, maddr in enumerate(HONEST[:honest]):
            session(reader, wanted(reader, maddr), rows(SESSION, 100 * turn + number), maddr)
        check()
    if "int8s" not in reader.coarse:  # then all have bf16
        assert seen >= set(map(address_group, HONEST[:honest]))


@pytest.mark.parametrize("strangers", [STRANGERS[:1], STRANGERS], ids=["one identity", "five of one network"])
@pytest.mark.parametrize("honest", [1, 2, 3])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_strange_rows_change_no_verdict_of_others(
    honest: int, attack: Callable[[int, int], np.ndarray], strangers: list[str]
) -> None:
    """A codec that is good for the rows of others stays where two others say so, and one that is not goes
    whatever a stranger says."""
    made_for_others = np.exp2(np.random.default_rng(5).permutation(np.log2(CHANNELS)))
    for codec, is_good in (
        (Int8sCodec.of(ScaleTable.from_rms(CHANNELS)), True),
        (Int8sCodec.of(ScaleTable.from_rms(made_for_others)), False),
    ):
        reader = RowReader(WEIGHTS, lambda: 0.0, passed=("int8s",))
        for number in range(20):
            session(reader, codec, attack(SESSION, number), strangers[number % len(strangers)])
        for number, maddr in enumerate(HONEST[:honest]):
            session(reader, codec, rows(SESSION, number), maddr)
        reader.look()
        if not is_good:
            assert reader.coarse == ("int8s",)
        elif honest > 1:
            assert reader.coarse == ()


def test_a_table_that_most_groups_made_goes_with_the_first_rows_that_it_harms() -> None:
    """However many groups of strangers make it, and say that it is good."""
    now = 0.0
    reader = RowReader(WEIGHTS, lambda: now, passed=("f8",))
    strangers = [f"/ip4/{number}.8.0.1/tcp/1" for number in range(20, 25)]
    for number, maddr in enumerate(strangers):
        session(reader, BF16, half_of_them_huge(SESSION, number), maddr)
    reader.look()
    poisoned = reader.table_for(NEWCOMER)
    assert poisoned is not None
    codec = Int8sCodec.of(poisoned)
    assert error(poisoned) > 0.1
    for number, maddr in enumerate(strangers):
        session(reader, codec, half_of_them_huge(SESSION, number), maddr)
    reader.look()
    assert reader.coarse == ()
    session(reader, codec, rows(SESSION, 0), HONEST[0])
    reader.look()
    assert reader.coarse == ("int8s",)
    assert reader.table_for(NEWCOMER) is reader.table_for(address_group(strangers[0])) is None
    now = REMEMBERED_S - 1
    for number, maddr in enumerate(HONEST):
        session(reader, BF16, rows(SESSION, number), maddr)
    reader.look()
    assert reader.coarse == ("int8s",)
    now = REMEMBERED_S
    reader.look()
    assert reader.coarse == ()
    learned = reader.table_for(NEWCOMER)
    assert learned is not None
    assert error(learned) < GOOD_ERROR


def test_rows_in_a_table_of_the_sender_s_own_drop_nothing() -> None:
    """Only those in the table that the reader asked for tell what that one does."""
    reader = RowReader(WEIGHTS, lambda: 0.0)
    for number, maddr in enumerate(HONEST):
        session(reader, BF16, rows(SESSION, number), maddr)
    reader.look()
    table = reader.table_for(NEWCOMER)
    assert table is not None
    for number, maddr in enumerate(HONEST):
        session(reader, Int8sCodec.of(table), rows(SESSION, 10 + number), maddr)
    made_for_others = Int8sCodec.of(ScaleTable.from_rms(1 / CHANNELS))
    session(reader, made_for_others, rows(SESSION, 5), STRANGERS[0])
    reader.look()
    assert reader.coarse == ()
    assert reader.table_for(NEWCOMER) == table
