"""Whatever is at the other end of the standard streams: an answer fails as it should, a node never does."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_node.node.cli.shared import streams
from swarm_node.node.cli.shared.streams import (
    MOST_WAITING,
    MOST_WAITING_BYTES,
    WriterQueue,
    answers_to,
    lost_event,
    lost_remark,
    remarks_to,
    write_all,
)
from swarm_node.swarm.errors import HungUpError, OutputError, ReaderGoneError
from swarm_node.swarm.terminal_text import json_line


@pytest.fixture
def pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    """Its end to read and the other, both unbuffered."""
    reading, writing = os.pipe()
    with io.FileIO(reading) as source:
        yield source, io.FileIO(writing, "w")  # closed by who holds it last: a thread may still write


def read_all(reading: io.FileIO) -> bytes:
    """Until the other end is closed."""
    return reading.readall()


def test_an_answer_that_nobody_reads_ends_its_command_quietly(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    pipe[0].close()
    with pytest.raises(ReaderGoneError) as raised:
        answers_to(pipe[1])(b"x")
    assert raised.value.exit_code == 141
    remarks_to(pipe[1])(b"x")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_that_was_closed_ends_its_command_as_the_signal_does() -> None:
    ours, theirs = os.openpty()
    with io.FileIO(theirs, "w") as raw:
        answer, remark = answers_to(raw), remarks_to(raw)
        answer(b"x")
        os.close(ours)
        with pytest.raises(HungUpError) as raised:
            answer(b"x")
        assert raised.value.exit_code == 129
        remark(b"x")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_an_answer_for_which_there_is_no_room_is_an_error() -> None:
    with io.FileIO("/dev/full", "w") as full:
        with pytest.raises(OutputError, match="No space left on device") as raised:
            answers_to(full)(b"x")
        assert raised.value.exit_code == 7
        remarks_to(full)(b"x")


def test_a_descriptor_that_somebody_made_non_blocking_takes_all(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    reading, raw = pipe
    os.set_blocking(raw.fileno(), False)
    data = os.urandom(2**20)
    writing = threading.Thread(target=lambda: (write_all(raw, data), raw.close()))
    writing.start()
    assert read_all(reading) == data
    writing.join()


def numbered(lines: bytes) -> list[int]:
    """The numbers of whole lines; a note of lost lines as a negative number."""
    found = []
    for line in lines.decode().splitlines():
        note = re.fullmatch(r"\((\d+) lines could not be written here\)", line)
        found.append(-int(note[1]) if note else int(re.fullmatch(r"line (\d+) x*", line)[1]))  # type: ignore[index]
    return found


def test_a_reader_that_never_reads_makes_nobody_wait_and_is_told_later(
    pipe: tuple[io.FileIO, io.FileIO],
) -> None:
    reading, raw = pipe
    queue = WriterQueue(lambda data: write_all(raw, data), lost_remark)
    began, sent = time.perf_counter(), 20_000
    for number in range(sent):
        queue.put(b"line %d %s\n" % (number, b"x" * 200))
    assert time.perf_counter() - began < 5.0
    assert queue._waiting_bytes <= MOST_WAITING_BYTES
    assert len(queue._waiting) <= MOST_WAITING + 1
    reader = threading.Thread(target=lambda: got.append(read_all(reading)))
    got: list[bytes] = []
    reader.start()
    queue.close()
    raw.close()
    reader.join()
    # Each line is there, or was counted in its place.
    expected = lost = 0
    for number in numbered(got[0]):
        if number < 0:
            lost -= number
            expected -= number
        else:
            assert number == expected
            expected += 1
    assert expected == sent
    assert sent - 3000 < lost < sent - 1000


def test_the_end_of_a_node_does_not_wait_for_a_reader(
    pipe: tuple[io.FileIO, io.FileIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CLOSE_S", 0.05)
    queue = WriterQueue(lambda data: write_all(pipe[1], data), lost_remark)
    for _ in range(1000):
        queue.put(b"x" * 999 + b"\n")
    began = time.perf_counter()
    queue.close()
    queue.put(b"late\n")
    assert time.perf_counter() - began < 5.0


@given(st.lists(st.booleans(), max_size=30))
def test_what_cannot_be_written_is_counted_and_said(times: list[bool]) -> None:
    """``times``: whether the disk is full while a line comes. It then takes a part of it."""
    written, full, dealt_with = bytearray(), False, threading.Semaphore(0)

    def write(data: bytes) -> None:
        if full:
            written.extend(data[: len(data) // 2])
            dealt_with.release()
            raise OSError(28, "No space left on device")
        written.extend(data)
        if not data.strip().startswith(b"("):
            dealt_with.release()

    queue = WriterQueue(write, lost_remark)
    for number, fails in enumerate(times):
        full = fails
        queue.put(b"line %d x\n" % number)
        dealt_with.acquire()
    full = False
    queue.put(b"line %d x\n" % len(times))
    queue.close()
    lost = 0
    for line in bytes(written).decode().split("\n"):
        if note := re.fullmatch(r"\((\d+) lines could not be written here\)", line):
            lost += int(note[1])
        if whole := re.fullmatch(r"line (\d+) x", line):
            assert not [*times, False][int(whole[1])]
    assert lost == sum(times)


def test_lost_events_are_an_event() -> None:
    event = json.loads(lost_event(3))
    assert event == {
        "event": "events_lost",
        "count": 3,
        "peer_id": "",
        "maddrs": [],
        "model": "",
        "blocks": "",
    }


@given(st.text(st.characters(codec=None)), st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8", "utf-16"]))
def test_json_is_exact_in_any_encoding(text: str, encoding: str) -> None:
    assert json.loads(json_line({"text": text}, encoding).encode(encoding).decode(encoding)) == {"text": text}


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"? caf? ?"), ("latin-1", b"? caf\xe9 ?")])
def test_what_cannot_be_encoded_is_replaced(
    encoding: str, shown: bytes, pipe: tuple[io.FileIO, io.FileIO]
) -> None:
    stream = streams.text_stream(pipe[1], answers_to(pipe[1]), encoding)
    stream.write("\N{PARTY POPPER} café 日")
    assert pipe[0].read(100) == shown
    assert stream.fileno() == pipe[1].fileno()
    assert not stream.isatty()
