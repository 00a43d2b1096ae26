"""``swarm-node config``, as a person and a program see it."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.config_file import read_config
from swarm_node.node.cli.settings.keys import common_keys, options_of, settable
from swarm_node.node.cli.settings.resolve import problems_of
from swarm_node.node.cli.settings.show import run_config
from swarm_node.node.cli.settings.template import config_template
from swarm_node.swarm.errors import UsageError
from tests import ROOT


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    parser = build_parser()
    try:
        asyncio.run(run_config(parser.parse_args(["config", *words]), parser))
    finally:
        out = capsys.readouterr().out
    return out


def test_what_is_in_force_and_where_it_comes_from(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.toml").write_text('swarm = "home"\n[serve]\nport = 4000\n')
    monkeypatch.setenv("SWARM_NODE_SERVE_THREADS", "3")
    shown = json.loads(said(capsys, "--json", "serve", "--", "--blocks", "0-14", "--join", "swn1secret"))
    options = shown["options"]
    assert list(options) == list(options_of(settable(build_parser())["serve"]))
    assert options["port"] == {
        "value": 4000,
        "source": "file",
        "from": f"{home}/config.toml, line 3, [serve]",
    }
    assert options["threads"]["from"] == "SWARM_NODE_SERVE_THREADS"
    assert options["blocks"] == {"value": "0-14", "source": "command_line", "from": "command line"}
    assert options["dtype"]["source"] == "default"
    assert options["join"]["value"] == "INVITE"
    assert options["swarm"]["source"] == "default"  # an invite says which


def test_a_person_sees_what_is_set(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text('[gateway]\nmodel = ["one", "two"]\n')
    assert re.search(r"gateway +model +one, two +config.toml, line 2, \[gateway\]", said(capsys))
    assert re.search(r"model +one, two +config.toml, line 2", said(capsys, "gateway"))


def test_all_that_is_wrong_is_listed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text(
        "swarn = 'x'\nthreads = 'many'\n[serve]\nport = 'x'\n[gateway]\nprot = 1\n"
    )
    with pytest.raises(UsageError, match="4 problems"):
        said(capsys, "--check")
    (home / "config.toml").write_text("swarm = 'x'\n")
    assert "Nothing is wrong" in said(capsys, "--check")


def test_the_written_file_has_every_option_and_sets_none(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "init")
    path = home / "config.toml"
    assert tomllib.loads(path.read_text()).keys() <= settable(build_parser()).keys()
    assert not problems_of(build_parser(), read_config(None))  # type: ignore[arg-type]
    assert said(capsys).count("default") == 1  # "every option has its default"
    with pytest.raises(UsageError, match="is there already"):
        said(capsys, "init")


def test_in_the_written_file_each_option_stands_once_and_defaults_are_values() -> None:
    parser = build_parser()
    commands = settable(parser)
    text = config_template(commands)
    above, *tables = re.split(r"^\[(\w+)\]$", text, flags=re.MULTILINE)
    for name, command in commands.items():
        table = dict(zip(tables[::2], tables[1::2], strict=True)).get(name, "")
        for key, option in options_of(command).items():
            lines = re.findall(rf"^# {key} = (.*)$", above + table, re.MULTILINE)
            assert len(lines) == 1, f"[{name}] {key}"
            option = common_keys(commands.values()).get(key, [option])[0]  # whose default is shown
            value = tomllib.loads(f"x = {lines[0]}")["x"]
            if option.action.default is not None and value == option.action.default:
                option.words(value)
            elif option.is_flag:
                assert option.action.default is None
            else:
                assert re.search(r"[A-Z]", str(value)) or value in option.action.choices  # what is wanted


def test_a_command_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as error:
        said(capsys, "serv")
    assert error.value.hint == "Did you mean serve?"


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "```toml" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_the_documentation_are_right(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        file = tmp_path / "config.toml"
        file.write_text(block)
        config = read_config(str(file))
        assert config is not None
        assert not problems_of(build_parser(), config)
