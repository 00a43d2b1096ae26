"""The file that ``swarm-node config init`` writes: every option with its help, all of them commented out."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping

from .keys import Option, ValueRefusedError, common_keys, options_of

HEAD = """\
# Options of swarm-node's commands. Remove the # before a line to set its option. The values shown are the
# defaults; where a default is no plain value, they are examples, or say in capitals what is wanted. An option
# on the command line counts before this file, and so does a variable: SWARM_NODE_SERVE_PORT sets port in
# [serve].
# What is in force: swarm-node config serve. What is wrong in here: swarm-node config --check.
"""
COMMON = """\
# For every command that has the option. A command's own table below counts first.
"""
WIDTH = 108


def config_template(commands: Mapping[str, argparse.ArgumentParser]) -> str:
    shared = {key: options for key, options in common_keys(commands.values()).items() if len(options) > 1}
    parts = [HEAD, COMMON, *(_entry(key, options[0]) for key, options in shared.items())]
    for name, command in commands.items():
        own = [option for key, option in options_of(command).items() if key not in shared]
        if own:
            parts += [f"[{name}]\n", *(_entry(option.key, option) for option in own)]
    return "\n".join(parts)


def _entry(key: str, option: Option) -> str:
    lines = textwrap.wrap(_help(option.action), WIDTH, initial_indent="# ", subsequent_indent="# ")
    return "\n".join([*lines, f"# {key} = {_example(option)}", ""])


def _help(action: argparse.Action) -> str:
    """As ``--help`` has it. Of an option that switches something off, the key has the other sense."""
    text = (action.help or "") % {**vars(action), "prog": "swarm-node"}
    choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
    off = "false: " if action.nargs == 0 and action.const is False else ""
    return f"{off}{text}{choices}"


def _example(option: Option) -> str:
    """The default as TOML, or what stands for a value in the help."""
    action = option.action
    if option.is_flag:
        return "true" if action.default is True or action.default is None else "false"
    if action.default not in (None, "", []) and _is_taken(option):
        return json.dumps(action.default)  # a TOML value, too
    word = json.dumps(action.metavar or next(iter(action.choices or ()), option.suffix))
    return f"[{word}]" if option.is_list else word


def _is_taken(option: Option) -> bool:
    """Whether the default reads as it is; a size in bytes does not."""
    try:
        option.words(option.action.default)
    except ValueRefusedError:
        return False
    return True
