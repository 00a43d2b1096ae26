"""A command's options as keys of a file and as variables: read from its parser, so that none is forgotten."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ....swarm.errors import UsageError

VARIABLE = "SWARM_NODE_"
"""How the names of our environment variables begin."""

UNSETTABLE = ("help", "config")
"""Options that only a command line has: ``--config`` says where the others are."""

WORDS_ALONE = ("config", "service", "completion")
"""Commands about the other commands: only their own words count for them, no file and no variable."""

NOT_OPTIONS = ("CC", "CONFIG", "HOME", "NATIVE", "SCREENSHOTS", "TEST_MODEL")
"""Our environment variables that are no options, without what all begin with."""


class ValueRefusedError(ValueError):
    """A value that an option does not take; the text says why, and what it takes."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of one command. ``key``: its name in a file, which is the one on a command line without
    dashes, and without the ``no-`` of an option that switches something off."""

    key: str
    action: argparse.Action

    @property
    def is_flag(self) -> bool:
        return self.action.nargs == 0

    @property
    def is_list(self) -> bool:
        return isinstance(self.action, argparse._AppendAction)

    @property
    def suffix(self) -> str:
        """What the option adds to names of variables."""
        return self.key.upper().replace("-", "_")

    def words(self, value: object) -> list[str]:
        """What says on a command line what ``value`` says in a file. Raises ValueRefusedError if the option
        does not take it."""
        try:
            words = self._flag(value) if self.is_flag else self._texts(value)
        except ValueRefusedError:
            raise
        except ValueError:  # Python writes none of them
            raise ValueRefusedError("it is a number of thousands of digits") from None
        alone = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
        alone._add_action(self.action)
        try:
            alone.parse_args(words, argparse.Namespace(**{self.action.dest: None}))
        except (argparse.ArgumentError, UsageError) as error:
            if words:
                raise ValueRefusedError(error.message) from None
        return words

    def read_variable(self, text: str) -> object:
        """A variable's text as a value of a file: yes or no for a flag, one element a line for a list."""
        if self.is_flag:
            return _SWITCHES.get(text.strip().lower(), text)
        return text.splitlines() if self.is_list else text

    def value_in(self, arguments: argparse.Namespace) -> object:
        """What the option is there, as JSON and a file can hold it; None if nothing is set."""
        value = getattr(arguments, self.action.dest)
        if self.is_flag and isinstance(self.action.const, str):
            return bool(value == self.action.const)
        if isinstance(value, list):
            return [_plain(each) for each in value]
        return _plain(value)

    def _flag(self, value: object) -> list[str]:
        if not isinstance(value, bool):
            raise ValueRefusedError(f"{_toml(value)} is neither true nor false")
        names = self.action.option_strings
        return [name for name in names if name.startswith("--no-") is not value][:1]

    def _texts(self, value: object) -> list[str]:
        values = value if isinstance(value, list) else [value]
        if not self.is_list and isinstance(value, list):
            raise ValueRefusedError("it takes one value, not a list")
        name = next(name for name in self.action.option_strings if name.startswith("--"))
        return [f"{name}={_text(each)}" for each in values]


_SWITCHES = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def options_of(command: argparse.ArgumentParser) -> dict[str, Option]:
    """By key, in the order of the help. Positional words of a command are none."""
    found = (Option(_key(each), each) for each in command._actions if each.option_strings)
    return {option.key: option for option in found if option.action.dest not in UNSETTABLE}


def commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    return next(each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))


def settable(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Commands whose options a file and variables may say."""
    return {name: each for name, each in commands_of(parser).items() if name not in WORDS_ALONE}


def common_keys(commands: Iterable[argparse.ArgumentParser]) -> dict[str, list[Option]]:
    """Keys that mean the same to each command that has them, which so may stand above all tables. ``port`` is
    none: each command has one of its own by default."""
    by_key: dict[str, list[Option]] = {}
    for command in commands:
        for key, option in options_of(command).items():
            by_key.setdefault(key, []).append(option)
    return {key: options for key, options in by_key.items() if _mean_the_same(options)}


def variables_of(command: str, option: Option, common: Iterable[str]) -> Iterator[str]:
    """Names of variables that set the option: the command's own first, then that of all commands."""
    yield f"{VARIABLE}{command.upper()}_{option.suffix}"
    if option.key in common:
        yield f"{VARIABLE}{option.suffix}"


def _key(action: argparse.Action) -> str:
    names = [name for name in action.option_strings if name.startswith("--")]
    return (names or action.option_strings)[0].lstrip("-").removeprefix("no-" if action.nargs == 0 else "")


def _mean_the_same(options: list[Option]) -> bool:
    """Whether one value may stand for all. A default that is nothing is like any."""
    actions = [option.action for option in options]
    kinds = {(action.type, action.nargs == 0, tuple(action.choices or ())) for action in actions}
    return len(kinds) == 1 and len({str(action.default) for action in actions if action.default}) <= 1


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueRefusedError(f"{_toml(value)} is neither a text nor a number")
    return str(value)
