"""``swarm-node service`` as a person calls it, where no manager of services runs."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.service import service, systemd
from swarm_node.node.cli.service.service import run_service
from swarm_node.swarm.errors import UsageError


@pytest.fixture(autouse=True)
def linux_without_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service.sys, "platform", "linux")
    monkeypatch.setattr(service, "runs_systemd", lambda: False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def said(capsys: pytest.CaptureFixture[str], words: str) -> str:
    parser = build_parser()
    asyncio.run(run_service(parser.parse_args(["service", *words.split()]), parser))
    return capsys.readouterr().out


def test_a_dry_run_shows_the_unit_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = said(capsys, "install serve --user --dry-run -- --model some-model --port 4000")
    assert f"# {tmp_path}/systemd/user/swarm-node-serve.service" in text
    assert "swarm_node.node.cli serve --model some-model --port 4000" in text
    assert "# then: systemctl --user enable swarm-node-serve" in text
    assert not list(tmp_path.iterdir())
    shown = json.loads(said(capsys, "install --user --dry-run --json -- --model some-model"))
    assert shown.keys() == {"file", "text", "steps"}


def test_a_dry_run_would_remove_only_what_is_installed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="swarm-node-serve is not installed"):
        said(capsys, "uninstall serve --user --dry-run")
    file = tmp_path / "systemd/user/swarm-node-serve.service"
    file.parent.mkdir(parents=True)
    file.touch()
    assert json.loads(said(capsys, "uninstall serve --user --dry-run --json")) == {
        "file": str(file),
        "removed": False,
    }
    assert file.exists()


def test_where_there_is_no_manager_a_person_is_told() -> None:
    parser = build_parser()
    for action in ("install", "status", "uninstall"):
        with pytest.raises(UsageError, match="neither systemd nor launchd"):
            asyncio.run(run_service(parser.parse_args(["service", action]), parser))


@pytest.mark.parametrize(("what", "hint"), [("serv", "Did you mean serve?"), ("chat", "These are: serve")])
def test_what_does_not_run_for_long_is_no_service(what: str, hint: str) -> None:
    parser = build_parser()
    with pytest.raises(UsageError) as error:
        asyncio.run(run_service(parser.parse_args(["service", "status", what]), parser))
    assert hint in error.value.hint


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs a root user")
def test_a_service_of_the_machine_is_of_who_called_sudo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_USER", "ada")
    text = said(capsys, "install bootstrap --dry-run")
    assert "\nUser=ada\n" in text
    assert "# /etc/systemd/system/swarm-node-bootstrap.service" in text
    assert "\nUser=eve\n" in said(capsys, "install bootstrap --dry-run --run-as eve")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs a root user")
@pytest.mark.parametrize(
    ("words", "said"),
    [("--system --run-as nobody-of-this-name", "has no user"), ("--user --run-as root", "of the machine")],
)
def test_a_user_that_cannot_run_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, said: str
) -> None:
    monkeypatch.setattr(service, "runs_systemd", lambda: True)
    monkeypatch.setattr(systemd, "SYSTEM_FOLDER", tmp_path)
    parser = build_parser()
    with pytest.raises(UsageError, match=said):
        asyncio.run(
            run_service(parser.parse_args(["service", "install", "bootstrap", *words.split()]), parser)
        )
    assert not list(tmp_path.iterdir())
