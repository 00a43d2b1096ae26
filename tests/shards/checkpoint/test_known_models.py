"""What this machine has used under a name, and what its user has pinned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.shards.checkpoint import known_models as module
from swarm_node.shards.checkpoint.known_models import KnownModels
from swarm_node.swarm.errors import SwarmError, UsageError
from swarm_node.swarm.names import ModelName

ONE, TWO = "ab" * 32, "cd" * 32


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(tmp_path: Path, clock: Clock) -> KnownModels:
    return KnownModels(tmp_path / "home" / "known_models", clock)


def test_the_model_used_last_counts_and_keeps_its_first_day(known: KnownModels, clock: Clock) -> None:
    assert known.used("demo") is None
    first = clock.now
    known.note_used("demo", ONE)
    clock.now += timedelta(days=1)
    known.note_used("demo", TWO)
    assert known.used("Demo.gguf").digest == TWO  # type: ignore[union-attr]
    assert known.used("demo", [ONE]).digest == ONE  # type: ignore[union-attr]
    assert known.used("demo", ["99" * 32]) is None
    assert known.used("other") is None
    clock.now += timedelta(minutes=1)
    known.note_used("demo", ONE)
    again = known.used("demo")
    assert again is not None
    assert (again.digest, again.first, again.last) == (ONE, first, clock.now)


def test_a_model_in_use_is_not_written_down_all_the_time(known: KnownModels, clock: Clock) -> None:
    known.note_used("demo", ONE)
    before = known.path.read_text()
    clock.now += timedelta(seconds=module.TOUCH_S - 1)
    known.note_used("demo", ONE)
    assert known.path.read_text() == before
    clock.now += timedelta(seconds=2)
    known.note_used("demo", ONE)
    assert known.path.read_text() != before


def test_pins_are_lines_that_a_person_can_read_and_write(known: KnownModels, clock: Clock) -> None:
    known.add_pin(ModelName("owner/demo", ONE))
    known.add_pin(ModelName("with spaces", "", TWO))
    known.note_used("demo", ONE)
    lines = known.path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[1:] == [
        f"pin {ONE} owner/demo",
        f"pin sha256:{TWO} with spaces",
        f"used {ONE} 2026-11-20T12:00:00Z 2026-11-20T12:00:00Z demo",
    ]
    assert known.pin("OWNER/demo") == ModelName("owner/demo", ONE)
    assert known.pin("demo") is None, "no owner is another name"
    known.path.write_text(known.path.read_text() + "# mine\n\n  pin\tabcd12   by hand \n")
    assert known.pin("by hand") == ModelName("by hand", "abcd12")
    known.add_pin(ModelName("owner/demo", TWO))
    assert known.pin("owner/demo") == ModelName("owner/demo", TWO)
    assert known.remove_pin("owner/demo")
    assert not known.remove_pin("owner/demo")
    text = known.path.read_text()
    assert "# mine\n" in text
    assert known.used("demo") is not None


@pytest.mark.parametrize(
    "text",
    [
        *("pin zz demo", "pin", f"pin {ONE}", "pin abcd \x1b[31m"),
        *(f"PIN {ONE} demo", f"pinned {ONE} demo", f"pin demo@{ONE}", f"demo@{ONE}"),
        f"pin {ONE} 2026-11-20T12:00:00Z 2026-11-20T12:00:00Z demo",  # a used line made one
        f"used {ONE} yesterday 2026-11-20T12:00:00Z demo",
        f"pin {ONE} demo\npin {TWO} Demo.gguf",
    ],
)
def test_a_line_that_might_have_been_a_pin_is_said(known: KnownModels, text: str) -> None:
    known.path.parent.mkdir()
    known.path.write_text(text)
    with pytest.raises(UsageError) as caught:
        known.pin("demo")
    assert str(known.path) in caught.value.message
    assert caught.value.message.isprintable()
    known.note_used("demo", ONE)
    assert known.path.read_text() == text, "what cannot be read is not written over"


def test_a_file_that_is_none_is_said(known: KnownModels) -> None:
    known.path.mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read"):
        known.pin("demo")
    known.path.rmdir()
    known.path.write_bytes(b"x" * (module.MAX_FILE_BYTES + 1))
    with pytest.raises(UsageError, match="more than"):
        known.used("demo")
    known.path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        known.pins()


def test_there_is_an_end_to_what_is_remembered(
    known: KnownModels, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_USED", 3)
    known.add_pin(ModelName("pinned", ONE))
    for number in range(5):
        clock.now += timedelta(minutes=1)
        known.note_used(f"demo {number}", ONE)
    assert [known.used(f"demo {number}") is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert known.pin("pinned") is not None


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_is_read_or_refused(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known_models"
        path.write_bytes(content)
        known = KnownModels(path)
        try:
            known.pins()
            known.used("demo")
        except SwarmError:
            return
        known.note_used("demo", ONE)
        assert known.used("demo").digest == ONE  # type: ignore[union-attr]
