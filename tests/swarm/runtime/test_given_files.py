"""What a person names may be no file at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from swarm_node.swarm.runtime.given_files import read_given

on_posix = pytest.mark.skipif(os.name == "nt", reason="it has no such files")


def test_a_file_is_read_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_given(path, 4) == b"1234"
    with pytest.raises(OSError, match="more than") as raised:
        read_given(path, 3)
    assert raised.value.errno == errno.EFBIG


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_given(tmp_path / "nothing", 4)
    with pytest.raises(OSError):
        read_given(tmp_path, 4)


@on_posix
def test_a_pipe_without_a_writer_is_empty_and_a_device_has_an_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_given(tmp_path / "pipe", 4) == b""
    with pytest.raises(OSError, match="more than"):
        read_given("/dev/zero", 1000)


@on_posix
def test_what_a_command_writes_is_read_to_its_end() -> None:
    """As ``<(command)`` gives it, more than a pipe holds."""
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(b"x" * 200_000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert len(read_given(f"/dev/fd/{reading}", 1 << 20)) == 200_000
    finally:
        os.close(reading)
        writer.join()
