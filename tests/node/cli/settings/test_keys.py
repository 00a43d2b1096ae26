"""Every option of every command, from a file and from variables, against the same words on a command line."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.keys import (
    NOT_OPTIONS,
    Option,
    ValueRefusedError,
    common_keys,
    options_of,
    settable,
    variables_of,
)
from swarm_node.node.cli.settings.resolve import parse_words
from tests import ROOT

PARSER = build_parser()
COMMANDS = settable(PARSER)
EVERY_OPTION = [(name, key) for name, command in COMMANDS.items() for key in options_of(command)]
SAMPLES = ("7", "0.5", "0-3", "8GiB", "12h", "any-text", "22:00-06:30", "a=b")
"""Of these each option takes one. Whoever adds an option that takes none adds one here."""


def value_for(option: Option) -> object:
    """A value that is not the default, as a file has it."""
    if option.is_flag:
        return next(value for value in (True, False) if option.words(value))
    for text in (*(option.action.choices or ()), *SAMPLES):
        value = [text, text] if option.is_list else text
        try:
            option.words(value)
        except ValueRefusedError:
            continue
        if text != option.action.default:
            return value
    raise AssertionError(f"no sample is one for --{option.key}")


def others(command: argparse.ArgumentParser) -> list[str]:
    """The words that a call of the command needs in any case."""
    return [
        next(iter(action.choices or ("word",)))
        for action in command._actions
        if action.required and not action.option_strings
    ]


def needed(command: argparse.ArgumentParser, but: str) -> list[str]:
    return [
        word
        for key, option in options_of(command).items()
        if option.action.required and key != but
        for word in option.words(value_for(option))
    ]


@pytest.mark.parametrize(("name", "key"), EVERY_OPTION, ids=lambda each: str(each))
def test_every_option_comes_from_a_file_and_from_variables_as_from_a_command_line(
    name: str, key: str, tmp_path: Path
) -> None:
    command = COMMANDS[name]
    option = options_of(command)[key]
    value = value_for(option)
    call = [name, *needed(command, key), *others(command)]
    expected = vars(PARSER.parse_args([*call, *option.words(value)]))

    file = tmp_path / "config.toml"
    file.write_text(f"[{name}]\n{key} = {toml(value)}\n")
    home = {"SWARM_NODE_CONFIG": str(file)}
    assert vars(parse_words(PARSER, call, home).arguments) == expected

    text = "\n".join(value) if isinstance(value, list) else str(value)
    for variable in variables_of(name, option, common_keys(COMMANDS.values())):
        nothing = {"SWARM_NODE_CONFIG": "/dev/null"}
        assert vars(parse_words(PARSER, call, {**nothing, variable: text}).arguments) == expected


def toml(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def test_no_two_options_have_a_variable_in_common() -> None:
    common = common_keys(COMMANDS.values())
    owners: dict[str, set[tuple[str, str]]] = {}
    for name, key in EVERY_OPTION:
        own, *shared = variables_of(name, options_of(COMMANDS[name])[key], common)
        owners.setdefault(own, set()).add((name, key))
        for variable in shared:
            owners.setdefault(variable, set()).add(("", key))
    assert [variable for variable, of in owners.items() if len(of) > 1] == []
    assert {f"SWARM_NODE_{name}" for name in NOT_OPTIONS} & owners.keys() == set()


def test_variables_that_set_no_option_are_those_of_the_reference() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text()
    told = {name for name in NOT_OPTIONS if f"`SWARM_NODE_{name}`" in page}
    assert told == set(NOT_OPTIONS)


@pytest.mark.parametrize("key", ["port", "host", "relay"])
def test_what_means_something_else_to_each_command_stands_in_its_table_only(key: str) -> None:
    assert key not in common_keys(COMMANDS.values())
    assert {"swarm", "log-level", "model", "initial-peers"} <= common_keys(COMMANDS.values()).keys()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("port", True, "true is neither a text nor a number"),
        ("port", 70000, "'70000' is not a port"),
        ("port", [1], "one value, not a list"),
        ("mdns", "yes", "'yes' is neither true nor false"),
        ("kv-dtype", "int9", "invalid choice: 'int9'"),
        ("announce", [{}], "{} is neither a text nor a number"),
    ],
)
def test_a_value_is_checked_as_on_the_command_line(key: str, value: object, why: str) -> None:
    with pytest.raises(ValueRefusedError) as refused:
        options_of(COMMANDS["serve"])[key].words(value)
    assert why in str(refused.value)
