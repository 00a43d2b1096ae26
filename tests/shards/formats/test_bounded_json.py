from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.shards.formats.bounded_json import MAX_DEPTH, JsonBounds, parse_json, read_bytes, read_json
from swarm_node.swarm.errors import CheckpointError

ROOMY = JsonBounds(10**6, 10**6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_what_is_within_the_bounds_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value).encode(), ROOMY) == value


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_raise(data: bytes) -> None:
    try:
        parse_json(data, ROOMY)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" + b" " * 100 + b"]", "more than 100 bytes"),
        (b"[[],[],[],[],[],[]]", "more than 10 values"),
        (b'{"a":{},"b":{},"c":{},"d":{},"e":{}}', None),
        (b'{"a":{},"b":{},"c":{},"d":{},"e":{},"f":{}}', "more than 10 values"),
    ],
)
def test_bounds(text: bytes, problem: str | None) -> None:
    bounds = JsonBounds(nbytes=100, values=10)
    if problem is None:
        assert parse_json(text, bounds)
        return
    with pytest.raises(ValueError, match=problem):
        parse_json(text, bounds)


@pytest.mark.parametrize(
    "text",
    [rb'"\ud800"', rb'{"\uDfFf": 1}', b'"\xed\xa0\x80"', '"\\ud800"'.encode("utf-16"), rb'["\udc00\ud800"]'],
)
def test_halves_of_characters_are_no_text(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"surrogates not allowed|can't decode"):
        parse_json(text, ROOMY)


@pytest.mark.parametrize("text", [rb'"\ud83d\ude00"', '"😀"'.encode(), '"😀"'.encode("utf-16")])
def test_whole_characters(text: bytes) -> None:
    assert parse_json(text, ROOMY) == "😀"


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 500, 200_000])
def test_depth(opening: bytes, depth: int) -> None:
    text = opening * depth + b"1" + (b"]" if opening == b"[" else b"}") * depth
    if depth <= MAX_DEPTH:
        assert parse_json(text, ROOMY)
        return
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text, JsonBounds(10**7, 10**7))


def test_huge_whole_numbers_cost_no_time() -> None:
    with pytest.raises(ValueError, match="digits"):
        parse_json(b"9" * 10**6, JsonBounds(10**7, 10**7))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1]")
    assert read_json(path, ROOMY) == [1]
    path.write_text("[1")
    with pytest.raises(CheckpointError, match="not usable JSON") as caught:
        read_json(path, ROOMY)
    assert caught.value.hint
    with pytest.raises(CheckpointError, match="more than 1 bytes"):
        read_json(path, JsonBounds(1, 1))
    with pytest.raises(CheckpointError, match="cannot read"):
        read_json(tmp_path / "none.json", ROOMY)


def test_a_file_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "endless.json"
    path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="more than 1000 bytes"):
        read_bytes(path, 1000)
