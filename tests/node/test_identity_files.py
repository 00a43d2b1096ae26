"""Key files: one process each, the same again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarm_node.node.identity_files import IdentityClaim
from swarm_node.swarm.errors import UsageError


def test_default_identities_differ_between_live_processes_and_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    with IdentityClaim(None, "serve") as first, IdentityClaim(None, "serve") as second:
        assert first.path != second.path
        assert first.path.parent == second.path.parent == tmp_path
    with IdentityClaim(None, "serve") as again:
        assert again.path == first.path


def test_a_named_identity_in_use_is_refused(tmp_path: Path) -> None:
    with IdentityClaim(tmp_path / "a.key", "serve"):
        with pytest.raises(UsageError, match="running") as error:
            IdentityClaim(tmp_path / "a.key", "serve")
        assert "--identity" in error.value.hint
    IdentityClaim(tmp_path / "a.key", "serve").close()


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        IdentityClaim(tmp_path / "file" / "folder" / "a.key", "serve")


def test_what_is_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "nowhere", "loop"):
        with pytest.raises(UsageError, match=f"{name} is not a folder"):
            IdentityClaim(tmp_path / name / "a.key", "serve")


@pytest.mark.parametrize("name", ["", ".", "folder", "/dev/null"])
def test_an_identity_is_an_ordinary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="not an ordinary file"):
        IdentityClaim(name, "node")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
