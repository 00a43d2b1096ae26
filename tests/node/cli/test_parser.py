"""The command line's words: help with examples everywhere, errors in the house's form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest

from swarm_node.client.params import chat_sampling
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.keys import commands_of
from swarm_node.node.cli.shared.arguments import CHAT_DEFAULTS
from swarm_node.shards.catalogue.catalogue import find_in_catalogue
from swarm_node.shards.formats.advice.sampling import SamplingAdvice
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.types import Span

COMMANDS = list(commands_of(build_parser()))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args([command, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert f"swarm-node {command}" in text
    assert "--json" in text


@pytest.mark.parametrize("command", ["chat", "run"])
def test_a_chats_help_says_how_chats_sample(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    advised = {f"--{field.name.replace('_', '-')}" for field in fields(SamplingAdvice)}
    assert advised == CHAT_DEFAULTS.keys()
    assert text.count("(default: as the model's makers advise, else ") == len(CHAT_DEFAULTS)
    for name, value in chat_sampling(SamplingAdvice()).items():
        assert CHAT_DEFAULTS[f"--{name.replace('_', '-')}"] == value


def test_the_help_of_all_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24, "a line is the shell's"
    assert max(map(len, lines)) <= 80
    assert [name for line in lines if (name := line[9:21].strip()) in COMMANDS] == COMMANDS
    (begin,) = (line.split()[:3] for line in lines if line.startswith("  swarm-node run "))
    assert find_in_catalogue(build_parser().parse_args(begin[1:]).model)


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--version"])
    assert re.fullmatch(r"swarm-node \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_examples_in_the_help_parse() -> None:
    """Every one-line example that the help shows is a call that the parser takes."""
    import shlex

    from swarm_node.node.cli import parser

    shown = [getattr(parser, name) for name in dir(parser) if name.endswith("_EXAMPLES")]
    lines = [line.strip() for text in shown for line in text.splitlines() if "swarm-node " in line]
    assert len(lines) >= 12
    for line in lines:
        call = re.split(r"\s{3,}| \| jq| > ", line[line.index("swarm-node ") :])[0]
        assert build_parser().parse_args(shlex.split(call)[1:]).command in COMMANDS


def test_blocks_are_read_both_ways() -> None:
    parse = build_parser().parse_args
    assert parse(["serve", "--model", "m", "--blocks", "0-20"]).blocks == Span(0, 21)
    assert parse(["serve", "--model", "m", "--blocks", "0:20"]).blocks == Span(0, 20)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (["serve", "--model", "m", "--blocks", "20-0"], "span"),
        (["serve", "--model", "m", "--blocks", "x"], "span"),
        (["serve", "--model", "m", "--port", "70000"], "port"),
        (["serve", "--model", "m", "--kv-cache-tokens", "0"], "--kv-cache-tokens"),
        (["serve", "--model", "m", "--drain-seconds", "nan"], "--drain-seconds"),
        (["serve", "--model", "m", "--kv-dtype", "int3"], "--kv-dtype"),
        (["serve", "--model", "m", "--journal-mib", "-1"], "--journal-mib"),
        (["serve", "--model", "m", "--kernels", "magic"], "--kernels"),
        (["serve", "--model", "m", "--prefill-target-ms", "0"], "--prefill-target-ms"),
        (["serve", "--model", "m", "--max-kv-share-per-peer", "50"], "--max-kv-share-per-peer"),
        (["serve", "--model", "m", "--idle-session-seconds", "x"], "--idle-session-seconds"),
        (["serve", "--model", "m", "--max-sessions-per-peer", "0"], "--max-sessions-per-peer"),
        (["generate", "--model", "m"], "prompt"),
        (["status", "--initial-peers"], "--initial-peers"),
        (["invite", "--lasts", "soon"], "--lasts"),
        (["fly"], "fly"),
        (["chatt"], "Did you mean chat"),
        (["serve", "--model", "x", "--kv-dtype", "int9"], "Did you mean int8"),
        ([], "COMMAND"),
    ],
)
def test_a_wrong_call_names_what_is_wrong(call: list[str], names: str) -> None:
    with pytest.raises(UsageError, match=names) as error:
        build_parser().parse_args(call)
    assert error.value.hint


@pytest.mark.parametrize(
    ("call", "told", "hint"),
    [
        (
            ["serve", "--modell", "x"],
            "no option --modell",
            "Did you mean --model? See swarm-node serve --help.",
        ),
        (["chat", "--temprature=3"], "no option --temprature", "Did you mean --temperature? "),
        (["run", "--model", "x"], "no option --model", "Give its value by itself: swarm-node run MODEL. "),
        (["generate", "hi", "--zzz"], "no option --zzz", "See swarm-node generate --help."),
        (["generate", "hi", "there"], "unexpected: there", "See swarm-node generate --help."),
    ],
)
def test_an_unknown_word_is_named_with_the_one_that_was_meant(call: list[str], told: str, hint: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        build_parser().parse_args(call)
    assert error.value.hint.startswith(hint)


def test_an_impossible_span_is_told_as_it_was_written() -> None:
    with pytest.raises(UsageError, match="'9-3' is not a span of blocks"):
        build_parser().parse_args(["serve", "--model", "m", "--blocks", "9-3"])


def test_initial_peers_may_be_repeated_or_listed() -> None:
    parsed = build_parser().parse_args(["status", "--initial-peers", "a,b", "--initial-peers", "c"])
    assert parsed.initial_peers == ["a", "b", "c"]


def test_a_text_is_utf_8_whatever_the_locale_knows() -> None:
    typed = "café 日本語"
    words = ["generate", "--stop", typed, typed]
    arguments = build_parser().parse_args(words)
    assert (arguments.prompt, arguments.stop) == (typed, [typed])
    # As Python gives it where the locale is of another encoding, and its bytes are no text there.
    script = (
        "from swarm_node.node.cli.parser import build_parser; import sys;"
        f"assert build_parser().parse_args(sys.argv[1:]).prompt.encode() == bytes({list(typed.encode())})"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", script, "generate", typed], env=environment, check=True, timeout=60)
    with pytest.raises(UsageError, match="not UTF-8"):
        build_parser().parse_args(["generate", "caf\udce9"])
