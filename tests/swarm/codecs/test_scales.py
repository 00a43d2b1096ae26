from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.swarm.codecs.scales import MAX_EXPONENT, ScaleTable, powers_of_two
from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError, UsageError
from swarm_node.swarm.types import MAX_SCALES


@given(st.binary(max_size=40), st.integers(1, 40))
def test_any_bytes_are_a_table_or_refused(exponents: bytes, width: int) -> None:
    values = [byte - 256 if byte > 127 else byte for byte in exponents]
    sound = 0 < len(exponents) == width and all(abs(value) <= MAX_EXPONENT for value in values)
    if sound:
        table = ScaleTable.from_peer(exponents, width)
        assert powers_of_two(table.exponents).tolist() == [2.0**value for value in values]
        assert table.digest == sha256(exponents).hexdigest()[:16]
        return
    with pytest.raises(RemoteProtocolError, match="the table of scales has") as caught:
        ScaleTable.from_peer(exponents, width)
    assert caught.value.code is ErrorCode.UNSUPPORTED_CODEC


@pytest.mark.parametrize(
    "exponents", [b"", bytes(MAX_SCALES + 1), bytes([33]), bytes([0, 223]), bytes([128])]
)
def test_a_table_of_ours_is_bounded_too(exponents: bytes) -> None:
    with pytest.raises(UsageError):
        ScaleTable(exponents)


def test_equal_tables_are_one_value() -> None:
    one, same, other = ScaleTable(b"\1\2"), ScaleTable(b"\1\2"), ScaleTable(b"\2\1")
    assert one == same != other
    assert len({one, same, other}) == 2
    assert one.digest != other.digest


def test_from_root_mean_squares() -> None:
    """Relative to the median of the channels that are used, to the nearest power of two, bounded."""
    rms = np.array([0.0, 3.0, 3.0, 3.0, 3.0 * 1.4, 3.0 * 1.5, 3000.0, 3e-3, 3e20, 3e-20])
    table = ScaleTable.from_rms(rms)
    assert np.frombuffer(table.exponents, np.int8).tolist() == [0, 0, 0, 0, 0, 1, 10, -10, 32, -32]
    assert ScaleTable.from_rms(np.zeros(3)).exponents == bytes(3)
    assert ScaleTable.from_rms(rms * 1e-9) == table


@pytest.mark.parametrize("rms", [[1.0, float("nan")], [1.0, float("inf")], [1.0, -1.0], [[1.0]], []])
def test_root_mean_squares_that_cannot_be(rms: list[float]) -> None:
    with pytest.raises(UsageError):
        ScaleTable.from_rms(np.array(rms))
