from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from swarm_node.client.hops.row_watch import (
    EXPLAINED,
    LEAST_GROWTH,
    MOST_GROWTH,
    REMEMBERED,
    RowWatch,
    usual_embedding_rms,
)
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import INT8
from swarm_node.swarm.codecs.names import KINDS
from swarm_node.swarm.codecs.packed import OUTLIERS
from swarm_node.swarm.errors import RemoteProtocolError
from swarm_node.swarm.types import Span
from tests.swarm.codecs.codec_cases import codec_of

HIDDEN = 64
USUAL = 0.125


def rows(count: int, seed: int = 0, rms: float = 1.0) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed)) * rms


def watch(*, own_input: bool = True, blocks: int = 30, usual: float = USUAL) -> RowWatch:
    return RowWatch(
        Boundaries.alike(blocks, HIDDEN), Span(0, blocks), own_input=own_input, embedding_rms=usual
    )


def look(
    watching: RowWatch,
    came: torch.Tensor,
    went: torch.Tensor,
    position: int = 7,
    codec: str = "int8",
    reply_codec: str = "int8",
) -> None:
    taken, given = codec_of(codec, came.shape[1]), codec_of(reply_codec, went.shape[1])
    sent, got = taken.encode(came.numpy()), given.encode(went.numpy())
    watching.check("peer a", taken, sent, len(came), given, got, position)


finite = st.floats(-100, 100, width=32)


@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.just(HIDDEN)), elements=finite),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
    st.sampled_from([0.05, 1.0, 2000.0]),
    st.booleans(),
)
def test_what_blocks_add_to_a_row_is_never_odd(
    values: np.ndarray, codec: str, reply_codec: str, growth: float, own_input: bool
) -> None:
    came = torch.from_numpy(values) * USUAL
    added = torch.randn_like(came) * USUAL * growth
    look(watch(own_input=own_input), came, came + added, codec=codec, reply_codec=reply_codec)


@pytest.mark.parametrize("codec", KINDS)
@pytest.mark.parametrize("channel", [0, HIDDEN - 1])
def test_the_first_tokens_of_real_models_are_never_odd(codec: str, channel: int) -> None:
    """One channel a hundred thousand times as large as an embedding's, as in SmolLM2 from block 11 on."""
    came = rows(1, rms=USUAL)
    went = rows(1, seed=1)
    went[0, channel] = 24_900.0
    look(watch(), came, went, position=0, codec=codec, reply_codec=codec)
    look(watch(own_input=False), went, went + rows(1, seed=2), position=0, codec=codec, reply_codec=codec)


@pytest.mark.parametrize("codec", KINDS)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("own_input", [True, False])
def test_sizes_that_cannot_be(codec: str, count: int, own_input: bool) -> None:
    came = rows(count, rms=USUAL)
    went = rows(count, seed=1)
    went[-1] = 0.0
    with pytest.raises(RemoteProtocolError, match=f"peer a: the row of position {6 + count} holds nothing"):
        look(watch(own_input=own_input), came, went, codec=codec, reply_codec=codec)
    with pytest.raises(RemoteProtocolError, match="next to nothing"):
        look(watch(own_input=own_input), came, rows(count, 1, USUAL * LEAST_GROWTH / 10), 7, codec, codec)
    if codec != "fp16":  # it holds no such values
        with pytest.raises(RemoteProtocolError, match="larger than any model's"):
            look(watch(own_input=own_input), came, rows(count, 1, USUAL * MOST_GROWTH * 10), 7, codec, codec)


@pytest.mark.parametrize("codec", KINDS)
def test_a_hop_is_not_blamed_for_what_it_was_fed(codec: str) -> None:
    other = watch(own_input=False)
    look(other, torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN), 7, codec, codec)
    tiny = rows(1, rms=USUAL * LEAST_GROWTH * 0.9)
    look(other, tiny, tiny * 0.5, 7, codec, codec)
    if codec != "fp16":
        just = rows(1, rms=USUAL * MOST_GROWTH * 0.9)
        look(other, just, just * 1.3, 7, codec, codec)
        for reply_codec in (
            "none",
            "bf16",
            "int8",
            "f8",
            "int8s",
        ):  # which tell more or less of a row's magnitude
            look(other, just, just * 1.3, 7, codec, reply_codec)
    assert math.sqrt(HIDDEN) < EXPLAINED


@pytest.mark.parametrize("codec", KINDS)
@pytest.mark.parametrize("reply_codec", KINDS)
def test_echoes_in_any_codec(codec: str, reply_codec: str) -> None:
    """A hop that computes nothing decodes what came, and encodes it for the next."""
    taken, given = codec_of(codec, HIDDEN), codec_of(reply_codec, HIDDEN, seed=2)
    came = taken.encode(rows(2, rms=USUAL).numpy())
    went = taken.decode(came, 2, HIDDEN)
    went[0] += 0.01 * USUAL
    with pytest.raises(RemoteProtocolError, match="position 8 is what was sent"):
        watch().check("peer a", taken, came, 2, given, given.encode(went), 7)


@pytest.mark.parametrize("codec", KINDS)
def test_echoes_of_our_own_input(codec: str) -> None:
    came = rows(2, rms=USUAL)
    went = torch.stack([rows(1, seed=1)[0], came[1]])
    with pytest.raises(RemoteProtocolError, match="position 8 is what was sent"):
        look(watch(), came, went, 7, codec, codec)
    look(watch(blocks=3), came, came, 7, codec, codec)  # blocks that do nothing may be there
    look(watch(own_input=False), came, came, 7, codec, codec)  # another's rows may drown what is added
    look(watch(), torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN), 7, codec, codec)


@pytest.mark.parametrize("codec", KINDS)
def test_echoes_of_rows_with_a_sideband(codec: str) -> None:
    """What a hop passes on is no echo; its residual as it came is one."""
    boundaries = Boundaries(tuple(HIDDEN + 8 * (30 - boundary) for boundary in range(31)))

    def made() -> RowWatch:
        return RowWatch(boundaries, Span(0, 20), own_input=True, embedding_rms=USUAL)

    came = torch.randn(3, HIDDEN + 240, generator=torch.Generator().manual_seed(3))
    taken = codec_of(codec, HIDDEN + 240)  # a hop has what its codec left
    came = torch.from_numpy(taken.decode(taken.encode(came.numpy()), *came.shape))
    computed = torch.cat((rows(3, seed=4), came[:, HIDDEN + 160 :]), 1)
    look(made(), came, computed, 7, codec, codec)
    computed[1, :HIDDEN] = came[1, :HIDDEN]
    with pytest.raises(RemoteProtocolError, match="row of position 8 is what was sent"):
        look(made(), came, computed, 7, codec, codec)
    came[:, :HIDDEN] = computed[:, :HIDDEN] = 0.0
    look(made(), came, computed[:1], 7, codec, codec)


def test_one_row_for_two_positions() -> None:
    watching, went = watch(), rows(1, seed=1)
    look(watching, rows(1, seed=2), went, 7)
    look(watching, rows(1, seed=3), went, 7)  # after a rollback
    look(watching, rows(1, seed=3), went, 8)  # of one token again: the blocks may see no difference
    look(watching, rows(1, seed=3) * 1.1, went, 9)  # of tokens that were never trained
    with pytest.raises(RemoteProtocolError, match="positions 9 and 10 are one and the same"):
        look(watching, rows(1, seed=4), went, 10)
    elsewhere = watch(own_input=False)
    look(elsewhere, rows(1, seed=2), went, 7)
    look(elsewhere, rows(1, seed=4), went, 10)


def test_what_is_remembered_is_bounded() -> None:
    watching = watch()
    for position in range(5 * REMEMBERED):
        look(watching, rows(1, seed=position), rows(1, seed=1000 + position), position)
    assert len(watching._seen) == REMEMBERED
    look(watching, rows(200, seed=1), rows(200, seed=2), 10_000)
    assert len(watching._seen) == REMEMBERED


def test_only_the_last_rows_may_be_asked_for() -> None:
    came = rows(5, rms=USUAL)
    look(watch(), came, rows(1, seed=1), 11)
    with pytest.raises(RemoteProtocolError, match="position 11 is what was sent"):
        look(watch(), came, came[-1:], 11)
    watch().check("peer a", INT8, INT8.encode(came.numpy()), 5, INT8, b"", 12)


def test_without_an_embedding_to_compare_with_sizes_are_not_looked_at() -> None:
    look(watch(usual=0.0), rows(1), torch.zeros(1, HIDDEN))
    look(watch(usual=0.0), rows(1), rows(1, 1, 1e11))


def test_the_usual_embedding() -> None:
    table = torch.full((1000, HIDDEN), 0.5)
    table[::2] *= -1
    table[:100] = 1000.0
    assert usual_embedding_rms(lambda ids: table[torch.as_tensor(list(ids))].numpy(), 1000) == 0.5
    assert OUTLIERS == 4  # ``magnitudes`` reads them
