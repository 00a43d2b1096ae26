"""``swarm-node completion``: a script with which a shell completes commands, options, choices and models."""

from __future__ import annotations

import argparse

import shtab

from ....shards.catalogue.catalogue import catalogue
from ..shared.output import print_text
from .keys import commands_of

_LIST_MODELS = """\
{ ls -1 "${SWARM_NODE_HOME:-$HOME/.swarm-node}/models" | sed "s/\\.gguf\\$//"; \
ls -1 "${HF_HUB_CACHE:-${HF_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/huggingface}/hub}" | \
sed -n "s/^models--//; s/--/\\//p"; echo "CATALOGUE"; } 2>/dev/null
"""
"""For sh: names of models on this machine, found without a start of Python, and those of the catalogue."""

_FUNCTIONS = {
    "bash": """
_swarm_node_models() {
  local name  # not by compgen -W, which would run what stands in a name
  while IFS= read -r name; do
    [[ $name != "$1"* ]] || printf '%s\\n' "$name"
  done < <(sh -c 'LIST')
  compgen -f -- "$1"
}
""",
    "zsh": """
_swarm_node_models() {
  local -a names=(${(f)"$(sh -c 'LIST')"})
  compadd -a names
  _files
}
""",
    "fish": """
function _swarm_node_models
  sh -c 'LIST'
  __fish_complete_path (commandline -ct)
end
""",
}
_CALLS = {"bash": "_swarm_node_models", "zsh": "_swarm_node_models", "fish": "(_swarm_node_models)"}


async def run_completion(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    print_text(script_for(arguments.shell, parser))


def script_for(shell: str, parser: argparse.ArgumentParser) -> str:
    """What the shell reads. The parser gets attributes that only this needs."""
    commands = commands_of(parser)
    for command in commands.values():
        for action in command._actions:
            if action.metavar == "FILE":
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "PATH_OR_NAME" or action.dest == "model":
                action.complete = {**_CALLS, "preamble": _preambles()}  # type: ignore[attr-defined]
    what = next(each for each in commands["config"]._actions if each.dest == "what")
    what.choices = [*commands, "init"]
    return shtab.complete(parser, shell)


def _preambles() -> dict[str, str]:
    names = "\n".join(model.name for model in catalogue())
    listing = _LIST_MODELS.strip().replace("CATALOGUE", names)
    return {shell: text.replace("LIST", listing) for shell, text in _FUNCTIONS.items()}
