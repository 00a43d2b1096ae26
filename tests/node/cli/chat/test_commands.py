"""What lines typed into a chat mean."""

from __future__ import annotations

import pytest

from swarm_node.client.params import GenerateOptions
from swarm_node.node.cli.chat.commands import COMMANDS, SETTINGS, Command, LineJoiner, parse, parse_setting
from swarm_node.swarm.errors import UsageError


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("hello", "hello"),
        ("  /not a command", "  /not a command"),
        ("//usr/bin is a folder", "/usr/bin is a folder"),
        ("two\nlines\n", "two\nlines"),
        ("/help", Command("help")),
        ("/?", Command("help")),
        ("/quit", Command("exit")),
        ("/system", Command("system")),
        ("/system be\nbrief ", Command("system", "be\nbrief")),
        ("/set temperature 0.7", Command("set", "temperature 0.7")),
        ("/save  a file.json", Command("save", "a file.json")),
    ],
)
def test_lines(line: str, meaning: str | Command) -> None:
    assert parse(line) == meaning


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/rout", "/route"),
        ("/xyzzy", "/help"),
        ("/save", "/save FILE"),
        ("/clear all", "/clear"),
        ("/", "/help"),
    ],
)
def test_wrong_commands(line: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert hint in caught.value.hint


def test_every_command_is_explained() -> None:
    assert all(text for _, text in COMMANDS.values())


@pytest.mark.parametrize(
    ("argument", "setting"),
    [
        ("temperature 0.7", ("temperature", 0.7)),
        ("temperature = 0.7", ("temperature", 0.7)),
        ("top-k 5", ("top_k", 5)),
        ("seed none", ("seed", None)),
        ("stop The end", ("stop", "The end")),
        ("ignore_eos on", ("ignore_eos", True)),
    ],
)
def test_settings(argument: str, setting: tuple[str, object]) -> None:
    assert parse_setting(argument) == setting


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("temperature hot", "a number"),
        ("top_k 1.5", "a whole number"),
        ("temperature", "lacks a value"),
        ("temprature 1", "no option"),
        ("raw true", "no option"),
    ],
)
def test_wrong_settings(argument: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_setting(argument)


def test_each_setting_is_an_option_of_generate() -> None:
    assert set(SETTINGS) <= set(GenerateOptions.__annotations__)


def joined(*lines: str) -> list[str]:
    joiner = LineJoiner()
    found = [message for line in lines if (message := joiner.push(line)) is not None]
    return [*found, joiner.end()] if joiner.is_open else found


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (["a", "b"], ["a", "b"]),
        (["a\\", "b", "c"], ["a\nb", "c"]),
        (['"""a', "", 'b"""', "c"], ["a\n\nb", "c"]),
        (['"""', "a\\", '"""', "c"], ["a\\", "c"]),
        (['"""all in one"""', "c"], ["all in one", "c"]),
        (['say """hi"""'], ['say """hi"""']),
        (["a\\"], ["a"]),
        (['"""a', "b"], ["a\nb"]),
        ([""], [""]),
    ],
)
def test_lines_are_joined(lines: list[str], messages: list[str]) -> None:
    assert joined(*lines) == messages
