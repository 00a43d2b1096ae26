"""The options of ``swarm-node generate``."""

from __future__ import annotations

import argparse
import json

from ....swarm.errors import UsageError
from ....swarm.runtime.given_files import read_given
from ..shared.arguments import (
    add_compute,
    add_draft,
    add_model,
    add_peers,
    add_sampling,
    add_sideband,
    add_speculate,
    add_wait,
    add_wire_codec,
    positive_int,
    typed_text,
)

MAX_SCHEMA_BYTES = 16 * 1024 * 1024
"""Bounds what a file may pour in."""

GENERATE_EXAMPLES = """\
examples:
  swarm-node generate --model PATH --initial-peers ADDR "What is the capital of France?"
  swarm-node generate --model PATH --initial-peers ADDR --raw "Once upon a time"
  cat question.txt | swarm-node generate --model PATH --initial-peers ADDR -
  swarm-node generate --model PATH --initial-peers ADDR --temperature 0.7 --top-p 0.9 --seed 1 "A poem"

If the model has a chat template, the prompt is one chat message (with the template's default system prompt).
The answer goes to standard output as it is generated, everything else to standard error.
"""


def add_generate(command: argparse.ArgumentParser) -> None:
    add_model(command)
    add_peers(command)
    command.add_argument("prompt", type=typed_text, help="the text; - reads standard input")
    raw = command.add_mutually_exclusive_group()
    raw.add_argument("--raw", action="store_true", help="send the text as it is, without the chat template")
    raw.add_argument(
        "--raw-text",
        action="store_const",
        const="text",
        dest="raw",
        help="as --raw, but control tokens that are spelled out in the text, such as </s>, are plain text",
    )
    command.add_argument(
        "--max-new-tokens",
        type=positive_int,
        default=256,
        metavar="N",
        help="longest answer, in tokens (default: %(default)s)",
    )
    add_sampling(command)
    command.add_argument(
        "--stop",
        type=typed_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text (repeatable)",
    )
    command.add_argument(
        "--ignore-eos", action="store_true", help="do not end the answer at the end-of-sequence token"
    )
    command.add_argument(
        "--json-schema", default=None, metavar="FILE", help="make the answer JSON of the schema in this file"
    )
    command.add_argument(
        "--logprobs",
        type=int,
        default=None,
        metavar="N",
        help="with --json: the probability of each token, and the N most likely tokens (0 to 20)",
    )
    add_speculate(command)
    add_draft(command)
    command.add_argument(
        "--trace",
        action="store_true",
        help="show what the route should have cost and what it did cost, stage by stage (also in --json)",
    )
    add_wire_codec(command)
    add_sideband(command)
    add_compute(command, "the head's weights")
    add_wait(command)
    command.add_argument("--quiet", action="store_true", help="print the answer only: no progress, no route")


def read_schema(path: str) -> str:
    """The text of a JSON schema. Raises UsageError for a file that cannot be read, or is not JSON."""
    try:
        text = read_given(path, MAX_SCHEMA_BYTES).decode()
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or str(error)
    else:
        try:
            json.loads(text)
            return text
        except (ValueError, RecursionError) as error:
            problem = f"it is not JSON: {error}"
    raise UsageError(f"cannot read the schema {path}: {problem}", hint="Give a JSON file in UTF-8.")
