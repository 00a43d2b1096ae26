"""int8, f8 and int8s against the written format, and hostile rows of them."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from swarm_node.swarm.codecs.f8 import VALUES
from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import F8, INT8
from swarm_node.swarm.codecs.scales import ScaleTable, powers_of_two
from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError, UsageError
from tests.swarm.codecs.codec_cases import activations, codec_of

pytestmark = pytest.mark.usefixtures("both_paths")

PACKED = ("int8", "f8", "int8s")
Row = tuple[float, list[int], list[float], bytes]


def written_rows(payload: bytes, tokens: int, width: int) -> list[Row]:
    """Rows (scale, channels, values, codes) parsed with struct, straight from the format's description."""
    k = min(4, width)
    row = struct.Struct(f"<f{k}H{k}f{width}s")
    assert len(payload) == tokens * row.size
    return [(f[0], list(f[1 : 1 + k]), list(f[1 + k : 1 + 2 * k]), f[-1]) for f in row.iter_unpack(payload)]


def test_int8_is_written_as_documented() -> None:
    x = np.array([[1.0, -500.0, 2.0, 0.0, 254.0, -3.0, 600.0, 127.0, -63.5, 700.0]], np.float32)
    ((scale, channels, values, q),) = written_rows(bytes(INT8.encode(x)), 1, 10)
    assert channels == [1, 4, 6, 9]
    assert values == [-500.0, 254.0, 600.0, 700.0]
    assert scale == 1.0  # 127, the largest of the others, over 127
    assert list(struct.unpack("10b", q)) == [1, 0, 2, 0, 0, -3, 0, 127, -64, 0]  # -63.5: half to even


def test_int8_reads_what_another_writer_chose() -> None:
    row = struct.pack("<f4H4f6b", 0.5, 0, 2, 3, 5, 1.0, 2.0, 3.0, 4.0, 99, -128, 99, 99, 7, 99)
    assert INT8.decode(row, 1, 6).tolist() == [[1.0, -64.0, 2.0, 3.0, 3.5, 4.0]]


def test_every_code_of_f8() -> None:
    assert VALUES[:33].tolist() == list(map(float, range(33)))
    assert VALUES[32:49].tolist() == [*map(float, range(32, 64, 2)), 64.0]
    assert VALUES[111:128].tolist() == [992.0, *map(float, range(1024, 2048, 64))]
    assert (np.diff(VALUES[:128]) > 0).all()
    assert np.array_equal(VALUES[128:], -VALUES[:128])
    assert np.signbit(VALUES[128])


def test_f8_is_written_as_documented() -> None:
    """A width of 4 + 256: the outliers, then every code's value, which comes back as it is."""
    x = np.concatenate([[5e3, -6e3, 7e3, 8e3], VALUES]).astype(np.float32)[None]
    payload = bytes(F8.encode(x))
    ((scale, channels, values, codes),) = written_rows(payload, 1, 260)
    assert (scale, channels, values) == (1.0, [0, 1, 2, 3], [5e3, -6e3, 7e3, 8e3])
    assert codes == bytes(4) + bytes(range(256))
    assert np.array_equal(F8.decode(payload, 1, 260), x)


@pytest.mark.parametrize("scale", [1.0, 0.37, 1e-6, 3e5])
def test_f8_takes_the_nearest_code_and_the_even_one_between_two(scale: float) -> None:
    between = (VALUES[:127].astype(np.float64) + VALUES[1:128]) / 2
    near = np.concatenate([between * (1 - 1e-6), between * (1 + 1e-6)])
    row = np.concatenate([[1e4, 1e4, 1e4, 1e4, 1984.0], near, -near]) * scale
    back = F8.decode(F8.encode(row[None].astype(np.float32)), 1, len(row))[0, 5:]
    lower, upper = VALUES[:127] * scale, VALUES[1:128] * scale
    np.testing.assert_allclose(back, np.concatenate([lower, upper, -lower, -upper]), rtol=1e-6)
    x = np.concatenate([[1e4, 1e4, 1e4, 1e4, 1984.0], between])[None].astype(np.float32)
    ((_, _, _, codes),) = written_rows(bytes(F8.encode(x)), 1, x.shape[1])
    assert list(codes[5:]) == [code + code % 2 for code in range(127)]


def test_int8s_is_int8_behind_powers_of_two() -> None:
    table = ScaleTable(np.array([-1, 3, 0, 8, 0, 2, -32, 32, 1, 0], np.int8).tobytes())
    x = activations(5, 10) * powers_of_two(table.exponents)
    divided = x / powers_of_two(table.exponents)
    for behind, plain, row in zip(
        written_rows(bytes(Int8sCodec.of(table).encode(x)), 5, 10),
        written_rows(bytes(INT8.encode(divided)), 5, 10),
        x,
        strict=True,
    ):
        assert (behind[0], behind[1], behind[3]) == (plain[0], plain[1], plain[3])
        assert behind[2] == row[behind[1]].tolist()  # outliers as they are


def test_int8s_without_powers_is_int8() -> None:
    x = activations(3, 40)
    codec = Int8sCodec.of(ScaleTable(bytes(40)))
    payload = bytes(INT8.encode(x))
    assert bytes(codec.encode(x)) == payload
    assert np.array_equal(codec.decode(payload, 3, 40), INT8.decode(payload, 3, 40))


def test_small_channels_beside_large_ones_survive_scales_alone() -> None:
    """What int8 loses: half of the channels a thousand times the others."""
    x = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    x[:, ::2] *= 1000
    table = ScaleTable.from_rms(np.sqrt(np.square(x).mean(axis=0)))

    def lost(kind: str) -> float:
        codec = Int8sCodec.of(table) if kind == "int8s" else codec_of(kind, 256)
        back = codec.decode(codec.encode(x), *x.shape)
        return float(np.sqrt(np.square(back - x)[:, 1::2].mean()))

    assert lost("int8") > 0.9
    assert lost("f8") < 0.5
    assert lost("int8s") < 0.02


def test_int8s_takes_rows_of_its_table_only() -> None:
    codec = codec_of("int8s", 8)
    for call in (
        lambda: codec.row_bytes(9),
        lambda: codec.encode(np.ones((1, 9), np.float32)),
        lambda: codec.decode(b"", 0, 7),
    ):
        with pytest.raises(UsageError, match="8 scales"):
            call()


@pytest.mark.parametrize("kind", PACKED)
def test_bytes_per_value(kind: str) -> None:
    assert codec_of(kind, 576).row_bytes(576) / 576 <= 1.06
    assert codec_of(kind, 8192).row_bytes(8192) / 8192 < 1.004


@pytest.mark.parametrize("kind", PACKED)
def test_structure_survives_numpy_dtype_padding(kind: str) -> None:
    """An odd width leaves rows unaligned; nothing may be padded."""
    x, codec = activations(3, 13), codec_of(kind, 13)
    payload = bytes(codec.encode(x))
    assert len(payload) == 3 * (4 + 6 * 4 + 13)
    for row, (_, channels, values, _) in zip(x, written_rows(payload, 3, 13), strict=True):
        assert channels == sorted(set(channels))
        assert values == row[channels].tolist()


def row_of(scale: float, channels: list[int], values: list[float], code: int = 1) -> bytes:
    return struct.pack("<f4H4f8B", scale, *channels, *values, *[code] * 8)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize(
    "row",
    [
        row_of(float("nan"), [0, 1, 2, 3], [1.0] * 4),
        row_of(float("inf"), [0, 1, 2, 3], [1.0] * 4),
        row_of(-1.0, [0, 1, 2, 3], [1.0] * 4),
        row_of(3e38, [0, 1, 2, 3], [1.0] * 4, 100),  # finite, but not times that
        row_of(1.0, [0, 1, 2, 3], [1.0, float("nan"), 1.0, 1.0]),
        row_of(1.0, [0, 1, 2, 3], [1.0, 1.0, 1.0, float("-inf")]),
        row_of(1.0, [0, 1, 2, 8], [1.0] * 4),  # out of range
        row_of(1.0, [0, 1, 2, 65535], [1.0] * 4),
        row_of(1.0, [0, 1, 1, 3], [1.0] * 4),  # twice
        row_of(1.0, [3, 2, 1, 0], [1.0] * 4),  # out of order
        row_of(1.0, [8, 1, 2, 3], [1.0] * 4),
    ],
)
def test_hostile_rows(kind: str, row: bytes) -> None:
    codec = codec_of(kind, 8)
    good = row_of(1.0, [0, 1, 2, 3], [1.0] * 4)
    codec.decode(good * 3, 3, 8)
    for payload in (row, good + row + good):
        with pytest.raises(RemoteProtocolError, match=f" in {kind} ") as caught:
            codec.decode(payload, len(payload) // len(row), 8)
        assert caught.value.code is ErrorCode.BAD_TENSOR


def test_a_small_scale_behind_a_large_power_is_too_large() -> None:
    codec = Int8sCodec.of(ScaleTable(bytes([0, 0, 0, 0, 32, 0, 0, 0])))
    within, beyond = (row_of(scale, [0, 1, 2, 3], [1.0] * 4, 127) for scale in (2.0**40 / 2**40, 2.1))
    assert codec.decode(within, 1, 8)[0, 4] == 127 * 2.0**32
    with pytest.raises(RemoteProtocolError, match="scale"):
        codec.decode(beyond * 1, 1, 8, 127 * 2.0**33)
    outlier_there = row_of(2.1, [0, 1, 2, 4], [1.0] * 4, 127)
    assert codec.decode(outlier_there, 1, 8, 300.0)[0].tolist()[:5] == [
        1.0,
        1.0,
        1.0,
        np.float32(2.1) * 127,
        1.0,
    ]
