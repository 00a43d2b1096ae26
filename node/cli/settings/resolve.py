"""What is in force for a command: its words, then variables, then the file, then its defaults."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain, islice
from shlex import quote

from ....swarm.errors import UsageError
from ....swarm.membership.invite import PREFIX
from .config_file import ConfigFile, read_config
from .keys import (
    VARIABLE,
    Option,
    ValueRefusedError,
    common_keys,
    options_of,
    settable,
    variables_of,
)

CONFIG_VARIABLE = f"{VARIABLE}CONFIG"

_SEE = "See swarm-node config --check for all that is wrong, and swarm-node COMMAND --help for what there is."

MOST_PROBLEMS = 100
"""What is wrong beyond these is the same again."""

REPLACES = {
    "join": ("swarm", "swarm_key", "initial_peers"),
    "swarm": ("join",),
    "swarm_key": ("join",),
}
"""Where one of these is said with more weight than the others, the others are not meant."""


@dataclass(frozen=True, slots=True)
class Found:
    """A value from outside the command line. ``source``: ``variable`` or ``file``; ``place``: the variable's
    name, or the file, line and table."""

    value: object
    source: str
    place: str


@dataclass(frozen=True, slots=True)
class Settings:
    """``arguments``: as argparse gives them. ``given``: keys of options on the command line, ``found``: what
    is in force from elsewhere, by key."""

    arguments: argparse.Namespace
    given: frozenset[str] = frozenset()
    found: Mapping[str, Found] = field(default_factory=dict)
    file: ConfigFile | None = None

    @property
    def warning(self) -> str:
        """For a person, if not empty."""
        if self.file is None or not self.file.everyone_writes:
            return ""
        path = self.file.path
        return f"every user of this machine may change {path}: chmod o-w {quote(str(path))}"

    def origin(self, text: str) -> str:
        """Where options that an error's text names come from, if not from the command line."""
        named = set(re.findall(r"--(?:no-)?([a-z][a-z-]*)", text)) & self.found.keys()
        return " ".join(f"See {self.found[key].place}." for key in sorted(named))


def parse_words(
    parser: argparse.ArgumentParser, words: Sequence[str], environ: Mapping[str, str], *, whole: bool = True
) -> Settings:
    """Read a command line with all that is in force beside it. Unless it must be ``whole``, options that a
    call needs may be missing. Raises UsageError."""
    name = next(iter(words), "")
    command = settable(parser).get(name)
    if command is None:
        return Settings(parser.parse_args(words))
    options = options_of(command)
    with _none_needed(command):  # a file may say it
        nothing = dict.fromkeys((action.dest for action in command._actions), None)
        typed = command.parse_args(words[1:], argparse.Namespace(**nothing))
    file = read_config(typed.config or environ.get(CONFIG_VARIABLE) or None)
    given = frozenset(
        key for key, option in options.items() if getattr(typed, option.action.dest) is not None
    )
    layers = _layers(parser, name, options, environ, file)
    found = _strongest(command, options, given, layers)
    more = [word for key, each in found.items() for word in _words(options[key], each)]
    with contextlib.nullcontext() if whole else _none_needed(command):
        arguments = parser.parse_args([name, *more, *words[1:]])
    return Settings(arguments, given, found, file)


def problems_of(parser: argparse.ArgumentParser, file: ConfigFile) -> list[str]:
    """What is wrong in a file, for any command: MOST_PROBLEMS at most."""
    return list(islice(_problems(parser, file), MOST_PROBLEMS))


def _problems(parser: argparse.ArgumentParser, file: ConfigFile) -> Iterator[str]:
    commands = settable(parser)
    common = common_keys(commands.values())
    yield from _unknown(commands, common, file)
    for key, options in common.items():
        if key in file.common:
            yield from _refusals(options, Found(file.common[key], "file", file.place(key)))
    for name, table in file.tables.items():
        if name in commands:
            options_here = options_of(commands[name])
            yield from _unknown_keys(file, name, options_here)
            for key in table.keys() & options_here.keys():
                yield from _refusals([options_here[key]], Found(table[key], "file", file.place(key, name)))


def other_variables(
    parser: argparse.ArgumentParser, environ: Mapping[str, str], known: Iterable[str]
) -> list[str]:
    """Variables that begin as ours do, and set nothing."""
    commands = settable(parser)
    common = common_keys(commands.values())
    ours = {VARIABLE + name for name in known}
    for name, command in commands.items():
        for option in options_of(command).values():
            ours.update(variables_of(name, option, common))
    return sorted(name for name in environ if name.startswith(VARIABLE) and name not in ours)


@contextlib.contextmanager
def _none_needed(command: argparse.ArgumentParser) -> Iterator[None]:
    needed = [action for action in command._actions if action.option_strings and action.required]
    for action in needed:
        action.required = False
    try:
        yield
    finally:
        for action in needed:
            action.required = True


def _layers(
    parser: argparse.ArgumentParser,
    name: str,
    options: Mapping[str, Option],
    environ: Mapping[str, str],
    file: ConfigFile | None,
) -> Iterator[dict[str, Found]]:
    """From the strongest to the weakest. Raises UsageError for a key that there is not."""
    if file is None and not any(variable.startswith(VARIABLE) for variable in environ):
        return
    common = common_keys(settable(parser).values())
    by_name: list[dict[str, Found]] = [{}, {}]
    for key, option in options.items():
        for layer, variable in zip(by_name, variables_of(name, option, common), strict=False):
            if text := environ.get(variable):
                layer[key] = Found(option.read_variable(text), "variable", variable)
    yield from by_name
    if file is None:
        return
    problems = chain(_unknown(settable(parser), common, file), _unknown_keys(file, name, options))
    if problem := next(problems, ""):
        raise UsageError(problem, hint=_SEE)
    table = file.tables.get(name, {})
    yield {key: Found(value, "file", file.place(key, name)) for key, value in table.items()}
    yield {key: Found(value, "file", file.place(key)) for key, value in file.common.items() if key in options}


def _strongest(
    command: argparse.ArgumentParser,
    options: Mapping[str, Option],
    given: frozenset[str],
    layers: Iterable[Mapping[str, Found]],
) -> dict[str, Found]:
    """Of each option what the strongest layer says. Beside it the weaker ones say nothing of it, nor of those
    that go with it in no case."""
    rivals = {
        action.dest: {other.dest for other in group._group_actions}
        for group in command._mutually_exclusive_groups
        for action in group._group_actions
    }

    def silenced(keys: Iterable[str]) -> set[str]:
        dests = {options[key].action.dest for key in keys}
        return dests.union(
            *(rivals.get(dest, ()) for dest in dests), *(REPLACES.get(dest, ()) for dest in dests)
        )

    found: dict[str, Found] = {}
    settled = silenced(given)
    for layer in layers:
        new = {key: each for key, each in layer.items() if options[key].action.dest not in settled}
        found |= new
        settled |= silenced(new)
    return found


def _words(option: Option, found: Found) -> list[str]:
    """Raises UsageError. An invite is a secret, and belongs into a file of its own."""
    try:
        words = option.words(found.value)
    except ValueRefusedError as error:
        raise UsageError(f"{found.place}: {error}", hint=_SEE) from None
    if option.key == "join" and str(found.value).lstrip().startswith(PREFIX):
        raise UsageError(
            f"{found.place}: an invite is a secret: save it in a file, and give that file's name"
        )
    return words


def _refusals(options: Iterable[Option], found: Found) -> Iterator[str]:
    """Why one of the options does not take the value."""
    for option in options:
        try:
            _words(option, found)
        except UsageError as error:
            yield error.message
            return


def _unknown(
    commands: Mapping[str, argparse.ArgumentParser], common: Mapping[str, object], file: ConfigFile
) -> Iterator[str]:
    """Tables and keys above them that no command has."""
    for table in file.tables:
        if table not in commands:
            yield f"{file.path}: there is no command for [{table}]{_near(table, commands)}"
    for key in file.common:
        if key in common:
            continue
        tables = [name for name, command in commands.items() if key in options_of(command)]
        if tables:
            yield (
                f"{file.place(key)}: it means something else to each command; put it into "
                f"{' or '.join(f'[{name}]' for name in tables)}"
            )
        else:
            yield f"{file.place(key)}: no command has this option{_near(key, common)}"


def _unknown_keys(file: ConfigFile, table: str, options: Mapping[str, Option]) -> Iterator[str]:
    for key in file.tables.get(table, {}):
        if key not in options:
            yield f"{file.place(key, table)}: `{table}` has no such option{_near(key, options)}"


def _near(name: str, names: Iterable[str]) -> str:
    near = get_close_matches(name.replace("_", "-"), names, 1)
    return f"; did you mean {near[0]}?" if near else ""
