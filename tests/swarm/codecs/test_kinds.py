from __future__ import annotations

import pytest

from swarm_node.swarm.codecs.int8s import Int8sCodec
from swarm_node.swarm.codecs.kinds import codec_named, kind_row_bytes, negotiate
from swarm_node.swarm.codecs.names import DEFAULT_KIND, KINDS, MORE_EXACT
from swarm_node.swarm.codecs.scales import scale_digest
from swarm_node.swarm.errors import ErrorCode, RemoteProtocolError, UsageError
from tests.swarm.codecs.codec_cases import codec_of, table_of

OLD = ("none", "bf16", "fp16", "int8")
"""What a peer of an earlier version speaks."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_codec_is_found_again_by_its_name(kind: str) -> None:
    codec = codec_of(kind, 16)
    tables = (table_of(16, 7).exponents, codec.exponents)
    again = codec_named(codec.name, 16, tables)
    assert again == codec
    assert hash(again) == hash(codec)
    assert (codec.kind, codec.row_bytes(16)) == (kind, kind_row_bytes(kind, 16))
    assert {codec: 1}[again] == 1
    assert codec.name == kind or codec.name == f"int8s.{table_of(16).digest}"


def test_tables_tell_codecs_apart() -> None:
    one, other = codec_of("int8s", 16, 1), codec_of("int8s", 16, 2)
    assert one != other
    assert one.name != other.name


@pytest.mark.parametrize(
    ("name", "tables", "told"),
    [
        ("zip", (), "not one of none, bf16"),
        ("int8s", (), "without its table"),
        ("int8s.0123456789abcdef", (), "without its table"),
        ("int8s.0123456789abcdef", (bytes(16),), "without its table"),
        (f"{codec_of('int8s', 16).name}0", (table_of(16).exponents,), "without its table"),
        (codec_of("int8s", 15).name, (table_of(15).exponents,), "15 channels, not the 16"),
        ("f8.0123456789abcdef", (), "not one of"),
        ("none.", (), "not one of"),
    ],
)
def test_names_that_name_no_codec(name: str, tables: tuple[bytes, ...], told: str) -> None:
    with pytest.raises(RemoteProtocolError, match=told) as caught:
        codec_named(name, 16, tables)
    assert caught.value.code is ErrorCode.UNSUPPORTED_CODEC


def test_a_table_beyond_its_bounds_is_refused_whatever_names_it() -> None:
    wild = bytes([100] * 16)
    with pytest.raises(RemoteProtocolError, match="exponent of 100"):
        codec_named(f"int8s.{scale_digest(wild)}", 16, (wild,))


@pytest.mark.parametrize("name", ["int8", "f8", codec_of("int8s", 16).name])
def test_a_node_takes_what_it_speaks(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"not one of none, bf16$"):
        codec_named(name, 16, (table_of(16).exponents,), ("none", "bf16"))


def test_scales_where_there_are_some() -> None:
    table = table_of(16)
    assert DEFAULT_KIND == "int8s"
    assert negotiate(KINDS, KINDS, table=table) == Int8sCodec.of(table)
    assert negotiate(KINDS, KINDS).name == "f8"
    assert negotiate(KINDS, ("f8", "bf16"), table=table).name == "f8"


@pytest.mark.parametrize("wanted", ["int8s", "f8", "int8", "bf16"])
def test_an_old_peer_gets_16_bits(wanted: str) -> None:
    """Never int8 unless it is asked for, nor fp16."""
    spoken = negotiate(KINDS, OLD, wanted, table_of(16)).name
    assert spoken == (wanted if wanted == "int8" else "bf16")


def test_negotiation_never_loses_precision_in_silence() -> None:
    assert negotiate(KINDS, KINDS, "int8").name == "int8"
    assert negotiate(KINDS, KINDS, "fp16").name == "fp16"
    assert negotiate(KINDS, ("none", "fp16"), "int8").name == "none"  # fp16 cannot hold every model
    assert negotiate(KINDS, ("none", "int8", "f8"), "bf16").name == "none"
    assert negotiate(KINDS, ("bf16", "none"), "fp16").name == "bf16"
    assert negotiate(("none", "int8"), ("future", "none", "fp16"), "int8").name == "none"
    for theirs in ((), ("int8", "f8", "int8s"), ("future",)):
        with pytest.raises(RemoteProtocolError) as caught:
            negotiate(KINDS, theirs, "fp16")
        assert caught.value.code is ErrorCode.UNSUPPORTED_CODEC
    with pytest.raises(UsageError):
        negotiate(KINDS, KINDS, "zip")


def test_a_fallback_is_never_int8_nor_fp16() -> None:
    assert MORE_EXACT.keys() == set(KINDS)
    for instead in MORE_EXACT.values():
        assert not {"int8", "fp16"} & set(instead)


def test_callers_mistakes() -> None:
    for kind, width in (("zip", 4), ("int8", 70000), ("int8s", 0)):
        with pytest.raises(UsageError):
            kind_row_bytes(kind, width)
