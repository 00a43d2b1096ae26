from __future__ import annotations

import os
from pathlib import Path

import pytest

from swarm_node.swarm.runtime import state_files
from swarm_node.swarm.runtime.state_files import create_file, replace_file, set_aside


def test_a_file_is_replaced_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace_file(path, "one")
    replace_file(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("write", [replace_file, create_file])
def test_the_data_is_on_the_disk_before_the_name_leads_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: object
) -> None:
    done: list[str] = []
    for name in ("fsync", "replace", "link"):
        real = getattr(os, name)

        def noted(*given: object, name: str = name, real: object = real) -> object:
            done.append(name)
            return real(*given)  # type: ignore[operator]

        monkeypatch.setattr(os, name, noted)
    write(tmp_path / "state", "x")  # type: ignore[operator]
    assert done == ["fsync", "replace" if write is replace_file else "link", "fsync"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    replace_file(path, "one")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
def test_what_is_there_is_not_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def none(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(state_files.os, "link", none)
    path = tmp_path / "key"
    create_file(path, "one")
    create_file(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_damaged_is_set_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "book"
    for text in ("first", "second"):
        path.write_text(text)
        assert set_aside(path) == tmp_path / "book.bad"
    assert (tmp_path / "book.bad").read_text() == "second"
    assert set_aside(path) is None
    folder = tmp_path / "folder"
    for _ in range(2):
        (folder / "inner").mkdir(parents=True)
        assert set_aside(folder) == tmp_path / "folder.bad"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["book.bad", "folder.bad"]


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state[1].key"
    others = [tmp_path / name for name in (".state1.key-x.scratch", ".state[1].key-notes", "other.scratch")]
    stale, fresh = tmp_path / ".state[1].key-abcdefgh.scratch", tmp_path / ".state[1].key-ijklmnop.scratch"
    for file in (*others, stale, fresh):
        file.write_text("secret")
        if file != fresh:
            os.utime(file, (1e9, 1e9))
    replace_file(path, "one")
    assert set(tmp_path.iterdir()) == {path, fresh, *others}
