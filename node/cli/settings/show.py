"""``swarm-node config``: what is in force and where it is from, what is wrong, and a file to begin with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from ....swarm.errors import UsageError
from ....swarm.membership.invite import PREFIX
from ....swarm.runtime.state_files import create_file
from ..shared.fitted_table import FittedTable
from ..shared.output import answers, plural, print_json, print_table, shown
from .config_file import ConfigFile, default_path, read_config
from .keys import NOT_OPTIONS, options_of, settable
from .resolve import CONFIG_VARIABLE, Settings, other_variables, parse_words, problems_of
from .template import config_template

INIT = "init"

MANY = 4
"""So many commands of which the same is set are counted, and not named."""


async def run_config(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    given = arguments.config or os.environ.get(CONFIG_VARIABLE) or None
    commands = settable(parser)
    if arguments.what == INIT:
        _write(given, commands, as_json=arguments.json)
    elif arguments.check:
        _check(parser, given, as_json=arguments.json)
    elif arguments.what is None:
        _show_all(parser, list(commands), given, as_json=arguments.json)
    elif arguments.what in commands:
        _show_command(parser, arguments.what, given, arguments.words, as_json=arguments.json)
    else:
        near = get_close_matches(arguments.what, [*commands, INIT], 1)
        raise UsageError(
            f"there is no command {arguments.what} whose options could be shown",
            hint=f"Did you mean {near[0]}?" if near else f"There are {', '.join(commands)}, and {INIT}.",
        )


def _write(given: str | None, commands: Mapping[str, argparse.ArgumentParser], *, as_json: bool) -> None:
    path = Path(given).expanduser() if given else default_path()
    if path.exists():
        raise UsageError(f"{path} is there already", hint="Edit it, or give another name with --config.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create_file(path, config_template(commands))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
    if as_json:
        print_json({"file": str(path)})
    else:
        answers.print(f"Wrote {shown(str(path))} with every option, all of them commented out.")


def _check(parser: argparse.ArgumentParser, given: str | None, *, as_json: bool) -> None:
    """Raises UsageError if something is wrong, so that a script sees it."""
    file = read_config(given)
    problems = [] if file is None else problems_of(parser, file)
    unknown = other_variables(parser, os.environ, NOT_OPTIONS)
    remarks = [f"the variable {name} sets no option" for name in unknown]
    if file is not None and (warning := Settings(argparse.Namespace(), file=file).warning):
        remarks.append(warning)
    if as_json:
        print_json({"file": _name_of(file), "problems": problems, "remarks": remarks})
    else:
        for line in problems:
            answers.print(f"[red]Wrong[/]: {shown(line)}")
        for line in remarks:
            answers.print(f"[yellow]Note[/]: {shown(line)}.")
        if not problems:
            name = default_path() if file is None else file.path
            what = f"There is no {name}" if file is None else f"Nothing is wrong in {name}"
            answers.print(f"{shown(what)}.")
    if problems:
        raise UsageError(f"{plural(len(problems), 'problem')} in {_name_of(file)}")


def _show_all(
    parser: argparse.ArgumentParser, commands: list[str], given: str | None, *, as_json: bool
) -> None:
    """What is set, by each command that it is for."""
    file = read_config(given)
    rows = {name: _rows(parser, name, _settings(parser, name, given, []), only_set=True) for name in commands}
    if as_json:
        print_json({"file": _name_of(file), "commands": {name: each for name, each in rows.items() if each}})
        return
    _say_file(file)
    table = _table("for", "option", "value", "from")
    alike: dict[tuple[str, str, str], list[str]] = {}
    for name, each in rows.items():
        for key, row in each.items():
            alike.setdefault((key, _value(row["value"]), _from(row, file)), []).append(name)
    for line, names in alike.items():
        table.add_row(", ".join(names) if len(names) < MANY else f"{len(names)} commands", *line)
    if table.row_count:
        print_table(table)
    else:
        answers.print("Nothing is set; every option has its default.")


def _show_command(
    parser: argparse.ArgumentParser, name: str, given: str | None, words: list[str], *, as_json: bool
) -> None:
    settings = _settings(parser, name, given, words)
    rows = _rows(parser, name, settings, only_set=False)
    if as_json:
        print_json({"file": _name_of(settings.file), "command": name, "options": rows})
        return
    _say_file(settings.file)
    table = _table("option", "value", "from")
    for key, row in rows.items():
        is_default = row["source"] == "default"
        table.add_row(key, _value(row["value"]), _from(row, settings.file), style="dim" if is_default else "")
    print_table(table)


def _settings(parser: argparse.ArgumentParser, name: str, given: str | None, words: list[str]) -> Settings:
    """Of a call with these options, whatever its other words are."""
    chosen = [f"--config={given}"] if given else []
    others = [each for each in settable(parser)[name]._actions if not each.option_strings and each.required]
    needed = [next(iter(each.choices or "-")) for each in others]
    return parse_words(parser, [name, *chosen, *words, *needed], os.environ, whole=False)


def _rows(
    parser: argparse.ArgumentParser, name: str, settings: Settings, *, only_set: bool
) -> dict[str, dict[str, object]]:
    """By key: the value, its source as a word that is stable, and where exactly it stands."""
    rows: dict[str, dict[str, object]] = {}
    for key, option in options_of(settable(parser)[name]).items():
        found = settings.found.get(key)
        if key in settings.given:
            source, place = "command_line", "command line"
        elif found is not None:
            source, place = found.source, found.place.removesuffix(f", {key}")
        else:
            source = place = "default"
        if source != "default" or not only_set:
            value = option.value_in(settings.arguments)
            if isinstance(value, str) and value.lstrip().startswith(PREFIX):
                value = "INVITE"  # which is a secret
            rows[key] = {"value": value, "source": source, "from": place}
    return rows


def _table(*headings: str) -> FittedTable:
    table = FittedTable(gap=1)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _value(value: object) -> str:
    if isinstance(value, list):
        return shown(", ".join(map(str, value)))
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value in (None, "") else shown(str(value))


def _from(row: Mapping[str, object], file: ConfigFile | None) -> str:
    """The file's folder is said above the table."""
    place = str(row["from"])
    return shown(place if file is None else place.replace(str(file.path), file.path.name))


def _say_file(file: ConfigFile | None) -> None:
    if file is None:
        answers.print(f"There is no {shown(str(default_path()))}: `swarm-node config init` writes one.")
    else:
        answers.print(f"File: {shown(str(file.path))}")


def _name_of(file: ConfigFile | None) -> str | None:
    return None if file is None else str(file.path)
