"""Which of several values counts, and what is said of those that cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.config_file import read_config
from swarm_node.node.cli.settings.resolve import (
    MOST_PROBLEMS,
    Settings,
    other_variables,
    parse_words,
    problems_of,
)
from swarm_node.swarm.errors import UsageError

FILE = """
swarm = "home"
model = "top"

[serve]
port = 4000
announce = ["/ip4/192.0.2.1/tcp/1"]

[gateway]
model = ["one", "two"]
"""


def settings(tmp_path: Path, words: str, text: str = FILE, **variables: str) -> Settings:
    file = tmp_path / "config.toml"
    file.write_text(text)
    environ = {f"SWARM_NODE_{name}": value for name, value in variables.items()}
    return parse_words(build_parser(), words.split(), {"SWARM_NODE_CONFIG": str(file), **environ})


def refused(tmp_path: Path, words: str, text: str, **variables: str) -> str:
    with pytest.raises(UsageError) as error:
        settings(tmp_path, words, text, **variables)
    return error.value.message.replace(f"{tmp_path}/", "")


def test_a_command_line_counts_before_variables_and_they_before_the_file(tmp_path: Path) -> None:
    assert settings(tmp_path, "serve").arguments.port == 4000
    assert settings(tmp_path, "serve", SERVE_PORT="5000").arguments.port == 5000
    assert settings(tmp_path, "serve --port 6000", SERVE_PORT="5000").arguments.port == 6000


def test_what_is_said_of_one_command_counts_before_what_is_said_of_all(tmp_path: Path) -> None:
    assert settings(tmp_path, "gateway").arguments.model == ["one", "two"]
    assert settings(tmp_path, "serve").arguments.model == "top"
    assert settings(tmp_path, "serve", MODEL="a").arguments.model == "a"
    assert settings(tmp_path, "serve", MODEL="a", SERVE_MODEL="b").arguments.model == "b"


def test_a_list_replaces_a_weaker_one(tmp_path: Path) -> None:
    weaker = settings(tmp_path, "serve").arguments
    assert weaker.announce == ["/ip4/192.0.2.1/tcp/1"]
    assert settings(tmp_path, "serve --announce /ip4/192.0.2.9/tcp/9").arguments.announce == [
        "/ip4/192.0.2.9/tcp/9"
    ]
    assert settings(tmp_path, "gateway", GATEWAY_MODEL="x\ny").arguments.model == ["x", "y"]


def test_a_switch_is_thrown_back(tmp_path: Path) -> None:
    text = "mdns = false\n[serve]\ndeterministic = true\nshare-weights = true\n"
    there = settings(tmp_path, "serve", text).arguments
    assert (there.mdns, there.deterministic, there.share_weights) == (False, True, True)
    back = {"MDNS": "yes", "SERVE_DETERMINISTIC": "off", "SERVE_SHARE_WEIGHTS": "0"}
    again = settings(tmp_path, "serve", text, **back).arguments
    assert (again.mdns, again.deterministic, again.share_weights) == (True, False, False)


def test_an_empty_variable_is_none(tmp_path: Path) -> None:
    assert settings(tmp_path, "serve", SERVE_PORT="").arguments.port == 4000


def test_an_invite_replaces_the_swarm_of_the_file_and_a_name_its_invite(tmp_path: Path) -> None:
    joined = settings(tmp_path, "serve --join invite.txt").arguments
    assert (joined.join, joined.swarm) == ("invite.txt", "")
    named = settings(tmp_path, "serve --swarm other", 'join = "invite.txt"').arguments
    assert (named.join, named.swarm) == ("", "other")


def test_of_options_that_exclude_each_other_the_stronger_one_counts(tmp_path: Path) -> None:
    text = "[generate]\nraw-text = true\n"
    assert settings(tmp_path, "generate hi", text).arguments.raw == "text"
    assert settings(tmp_path, "generate hi --raw", text).arguments.raw is True
    both = "[generate]\nraw-text = true\nraw = true\n"
    assert "not allowed with" in refused(tmp_path, "generate hi", both)


def test_an_option_that_a_call_needs_may_come_from_the_file(tmp_path: Path) -> None:
    assert settings(tmp_path, "invite", "[invite]\nlasts = '2d'\n").arguments.lasts == 2 * 86400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n[serve]\nport = 70000\n", "config.toml, line 3, [serve], port: '70000' is not a port"),
        ("[serve]\nprot = 1\n", "line 2, [serve], prot: `serve` has no such option; did you mean port?"),
        ("kv_dtype = 'int8'\n", "line 1, kv_dtype: no command has this option; did you mean kv-dtype?"),
        ("port = 1\n", "line 1, port: it means something else to each command; put it into [gateway] or"),
        ("[serv]\n", "there is no command for [serv]; did you mean serve?"),
        ("[serve\n", "config.toml is not TOML: "),
        ("[serve]\nkv-dtype = 'x'\n", "line 2, [serve], kv-dtype: invalid choice: 'x' (choose from 'auto'"),
        ("join = 'swn1abc'\n", "line 1, join: an invite is a secret: save it in a file"),
    ],
)
def test_an_error_names_place_and_what_is_allowed(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, "serve", text)


def test_a_variable_that_is_wrong_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path, "serve", "", SERVE_PORT="x").startswith(
        "SWARM_NODE_SERVE_PORT: 'x' is not a port"
    )
    assert refused(tmp_path, "serve", "", MDNS="maybe").startswith("SWARM_NODE_MDNS: 'maybe' is neither")


def test_what_is_wrong_in_another_commands_table_stops_no_command(tmp_path: Path) -> None:
    assert settings(tmp_path, "status", "[serve]\nport = 'x'\nprot = 1\n").arguments.command == "status"


def test_a_file_that_was_named_must_be_there_and_the_default_one_need_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        parse_words(build_parser(), ["serve", "--config", str(tmp_path / "none.toml")], {})
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    assert parse_words(build_parser(), ["serve"], {}).file is None
    (tmp_path / "config.toml").write_text("swarm = 'here'\n")
    assert parse_words(build_parser(), ["serve"], {}).arguments.swarm == "here"


def test_of_a_file_that_is_all_wrong_only_so_much_is_told(tmp_path: Path) -> None:
    """It took minutes, in which nothing could end it, to find each key's line among all lines."""
    text = "".join(f"k{n} = 1\n" for n in range(50_000))
    assert refused(tmp_path, "gateway", text).startswith(
        "config.toml, line 1, k0: no command has this option"
    )
    file = read_config(str(tmp_path / "config.toml"))
    assert file is not None
    problems = problems_of(build_parser(), file)
    assert len(problems) == MOST_PROBLEMS
    assert f"line {MOST_PROBLEMS}, k{MOST_PROBLEMS - 1}:" in problems[-1]


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000])
def test_a_number_of_thousands_of_digits_is_refused(tmp_path: Path, number: str) -> None:
    for text in (f"json = {number}", f"[gateway]\nport = {number}", f"[gateway]\nmodel = [[{number}]]"):
        assert len(refused(tmp_path, "gateway", text)) < 200


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        parse_words(build_parser(), ["serve", "--config", "/dev/zero"], {})


@pytest.mark.skipif(os.name == "nt", reason="its files have no such mode")
def test_a_file_that_everyone_may_change_is_told(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("swarm-key = 'home.key'\n")
    call = ["serve", "--config", str(file)]
    file.chmod(0o644)
    assert not parse_words(build_parser(), call, {}).warning
    file.chmod(0o646)
    assert f"chmod o-w {file}" in parse_words(build_parser(), call, {}).warning


def test_an_error_about_options_says_where_they_are_from(tmp_path: Path) -> None:
    there = settings(tmp_path, "serve", "[serve]\ndirect = false\n")
    said = there.origin("--no-direct goes with neither --direct-port nor --announce-direct")
    assert said == f"See {tmp_path}/config.toml, line 2, [serve], direct."


def test_variables_that_set_nothing_are_known() -> None:
    names = ["SWARM_NODE_HOME", "SWARM_NODE_SERV_PORT", "SWARM_NODE_SERVE_PORT", "SWARM_NODE_SWARM", "OTHER"]
    environ = dict.fromkeys(names, "1")
    assert other_variables(build_parser(), environ, ["HOME"]) == ["SWARM_NODE_SERV_PORT"]


def test_nothing_heavy_is_imported_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[serve]\nport = 'x'\n")
    program = (
        "import sys; from swarm_node.node.cli.main import main; code = main(['serve']); "
        "print(code, {'torch', 'numpy', 'hivemind'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "SWARM_NODE_HOME": str(tmp_path)},
        timeout=60,
    )
    assert done.stdout == "2 set()\n"
    assert "line 2, [serve], port: 'x' is not a port" in done.stderr
