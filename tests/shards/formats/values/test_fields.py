"""Typed values of a file: what is taken, and what the message says of what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swarm_node.shards.formats.values.fields import Fields
from swarm_node.swarm.errors import CheckpointError

Read = Callable[[Fields], Any]


def test_values_of_the_right_type() -> None:
    read = Fields({"n": 3, "x": 1.5, "b": False, "t": "é", "l": [1, 2, 1], "o": {"k": [{"i": 1}]}}, "f")
    assert (read.integer("n"), read.number("n"), read.number("x")) == (3, 3.0, 1.5)
    assert Fields({"zero": 0}, "f").number("zero", least=0) == 0.0
    assert (read.flag("b"), read.text("t"), read.integers("l", most=9)) == (False, "é", (1, 2))
    inner = read.section("o")
    assert inner is not None
    assert [each.integer("i") for each in inner.sections("k")] == [1]
    assert read.unread() == []
    assert inner.named("k") == "f: o.k"


def test_missing_and_null() -> None:
    read = Fields({"null": None}, "f")
    assert (read.integer("no", 4), read.flag("no", True), read.text("no", "d")) == (4, True, "d")
    for key in ("no", "null"):
        assert read.optional_integer(key) is read.optional_number(key) is read.optional_text(key) is None
        assert read.section(key) is None
        assert read.integers(key, most=1) == read.texts(key) == ()
        assert read.sections(key) == []
    assert read.optional_integer("no", 5) == 5
    assert read.optional_integer("null", 5) is None
    assert read.has("null")
    assert read.is_null("null")
    assert not read.is_null("no")
    assert not read.is_given("null")
    assert not read.is_given("no")


@pytest.mark.parametrize(
    ("value", "read", "message"),
    [
        (None, lambda r: r.integer("k", 1), "f: k is None, expected a whole number of 0 or more"),
        (True, lambda r: r.integer("k"), "f: k is True, expected a whole number of 0 or more"),
        (1.0, lambda r: r.integer("k"), "f: k is 1.0, expected a whole number of 0 or more"),
        (7, lambda r: r.integer("k", least=1, most=6), "f: k is 7, expected a whole number from 1 to 6"),
        (-1, lambda r: r.integer("k"), "f: k is -1, expected a whole number of 0 or more"),
        ("²", lambda r: r.integer("k"), "f: k is '²', expected a whole number of 0 or more"),
        (2**63, lambda r: r.integer("k"), f"f: k is {2**63}, expected a whole number of 0 or more"),
        (True, lambda r: r.number("k"), "f: k is True, expected a number above"),
        (float("nan"), lambda r: r.number("k"), "f: k is nan, expected a number"),
        (float("inf"), lambda r: r.number("k"), "f: k is inf, expected a number"),
        (10**400, lambda r: r.number("k"), "expected a number"),
        (0, lambda r: r.number("k", above=0, below=9), "f: k is 0, expected a number above 0 and below 9"),
        (-0.1, lambda r: r.number("k", least=0), "f: k is -0.1, expected a number of 0 or more and below"),
        (1, lambda r: r.flag("k"), "f: k is 1, expected true or false"),
        (["a"], lambda r: r.text("k"), r"f: k is \['a'\], expected a text"),
        ("ab", lambda r: r.texts("k"), "f: k is 'ab', expected a list of texts"),
        (
            [True],
            lambda r: r.integers("k", most=5),
            r"f: k is \[True\], expected a whole number from 0 to 5, or a",
        ),
        ([6], lambda r: r.integers("k", most=5), r"f: k is \[6\], expected"),
        ([1, 2, 3], lambda r: r.integers("k", most=5, entries=2), "a list of up to 2 of them"),
        ([1], lambda r: r.section("k"), r"f: k is \[1\], expected an object"),
        ([[]], lambda r: r.sections("k"), r"f: k is \[\[\]\], expected a list of objects"),
        (["x" * 10**6] * 10**4, lambda r: r.texts("k"), "f: k is .{1,1000}$"),
    ],
)
def test_values_of_the_wrong_type(value: object, read: Read, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(Fields({"k": value}, "f"))
    assert len(str(caught.value)) < 1200


def test_a_missing_key_that_must_be_there() -> None:
    with pytest.raises(CheckpointError, match=r"^f: a\.k is missing, expected a whole number"):
        Fields({}, "f", "a.").integer("k")
