"""Commands that messages name lead where the failed command went."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm_node.node.cli.main import main
from swarm_node.node.cli.network.tables import print_tables
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.shared.pasting import pasteable
from swarm_node.swarm.routing.best_route import NoRouteError, RouteRequest, find_route
from swarm_node.swarm.routing.edges import Edges
from tests import ROOT
from tests.project.test_layering import PACKAGES

ADDR = "/ip4/192.0.2.7/tcp/31330/p2p/12D3KooWx"


@pytest.mark.parametrize(
    ("call", "text", "told"),
    [
        ("generate hi", "`swarm-node models` lists them.", "`swarm-node models` lists them."),
        (
            f"generate hi --swarm 'my den' --initial-peers {ADDR} --no-mdns",
            "Pin it: `swarm-node models pin a@12`.",
            f"Pin it: `swarm-node models pin a@12 --swarm 'my den' --initial-peers {ADDR} --no-mdns`.",
        ),
        (
            f"generate hi --model 'a b.gguf' --initial-peers {ADDR},{ADDR}",
            "`swarm-node serve --model NAME --blocks 1-2`",
            f"`swarm-node serve --model 'a b.gguf' --blocks 1-2 --initial-peers {ADDR},{ADDR}`",
        ),
        ("status --join me.txt", "`swarm-node invite`", "`swarm-node invite --join me.txt`"),
        ("status --join swn1secret", "`swarm-node invite`", "`swarm-node invite --join INVITE`"),
        (
            "serve --swarm home --swarm-key k",
            "`swarm-node invite --swarm-key k`",
            "`swarm-node invite --swarm-key k --swarm home`",
        ),
        (
            f"chat --model base --swarm den --initial-peers {ADDR}",
            "`swarm-node generate --model 'a b' --raw 'Once upon a time'`",
            f"`swarm-node generate --model base --raw 'Once upon a time' --swarm den --initial-peers {ADDR}`",
        ),
        ("models unpin x --swarm a", "`swarm-node models unpin y`", "`swarm-node models unpin y`"),
        (
            "status --swarm a",
            "see `swarm-node bootstrap`, or 'swarm-node'",
            "see `swarm-node bootstrap`, or 'swarm-node'",
        ),
    ],
)
def test_a_command_in_backticks_goes_into_the_same_swarm(call: str, text: str, told: str) -> None:
    assert pasteable(text, build_parser().parse_args(shlex.split(call))) == told


def test_a_hole_in_a_route_is_filled_by_the_command_that_is_named() -> None:
    call = ["generate", "--model", "m.gguf", "--swarm", "den", "--initial-peers", ADDR, "hi"]
    with pytest.raises(NoRouteError) as raised:
        find_route([], Edges([], {}), RouteRequest(n_blocks=30, kv_tokens=1))
    hint = pasteable(raised.value.hint, build_parser().parse_args(call))
    pasted = build_parser().parse_args(shlex.split(hint.split("`")[1])[1:])
    assert (pasted.command, pasted.model, str(pasted.blocks)) == ("serve", "m.gguf", "0-29")
    assert (pasted.swarm, pasted.initial_peers) == ("den", [ADDR])


def test_errors_of_the_program_say_it_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    key = tmp_path / "hme.key"
    assert main(["status", "--swarm", "home", "--swarm-key", str(key)]) == 2
    told = capsys.readouterr().err
    assert f"`swarm-node invite --swarm-key {key} --swarm home`" in told
    assert "check the name" in told


def test_status_names_the_model_whose_blocks_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    model = {"name": "a", "n_blocks": 4, "networks": 0, "missing": ["0-3"], "silent": [], "nodes": []}
    models = [{**model, "digest": "ab" * 32}, {**model, "digest": "cd" * 32}]
    print_tables({"models": models, "wanted": [], "left_out": [], "alone": False})
    told = " ".join(capsys.readouterr().out.split())
    assert f"`swarm-node serve --model a@{'ab' * 6} --blocks 0-3`" in told
    print_tables({"models": models[:1], "wanted": [], "left_out": [], "alone": False})
    assert "`swarm-node serve --model a --blocks 0-3`" in " ".join(capsys.readouterr().out.split())


def test_a_peer_that_is_gone_is_no_way_into_the_swarm() -> None:
    peers = ["/ip4/192.0.2.7/tcp/31330/p2p/QmDead", "/ip4/192.0.2.8/tcp/31330/p2p/QmAlive"]
    arguments = build_parser().parse_args(["generate", "--initial-peers", ",".join(peers), "Hello"])
    text = "`swarm-node serve --model M`"
    assert (
        pasteable(text, arguments, {"QmDead"}) == f"`swarm-node serve --model M --initial-peers {peers[1]}`"
    )
    assert pasteable(text, arguments, {"QmDead", "QmAlive"}) == "`swarm-node serve --model M`"


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
COMMAND = re.compile(r"`(swarm-node [^`]*)`")
FIELD = "12-13"
"""In place of what a message fills in: a span, and a name, file, and address of a model's."""
PLAIN = {
    **dict.fromkeys(("blocks", "model['missing'][0]", "which"), FIELD),
    **dict.fromkeys(("command", "service.command", "stopped[0].command"), "serve"),
    "here": "",
}
"""Fields that need no quotes, since they are words of ours or were quoted before; and a value of each."""


def filled(field: ast.FormattedValue) -> str:
    """What may stand there, if a shell takes it as the words that it is; else the expression in braces."""
    expression = ast.unparse(field.value)
    if re.match(r"(shlex\.)?(quote|join)\(", expression):
        return FIELD
    return PLAIN.get(expression, f"{{{expression}}}")


def texts(tree: ast.AST) -> Iterator[str]:
    """What a module may show: its strings, with what is filled in. No docstrings."""
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                filled(part) if isinstance(part, ast.FormattedValue) else str(part.value)
                for part in node.values
                if isinstance(part, ast.FormattedValue | ast.Constant)
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation | parts
        ):
            yield node.value


def test_every_command_in_a_message_is_one() -> None:
    """It is taken as it stands, and leaves nothing to be guessed."""
    found = [
        (path, command)
        for path in FILES
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
        for command in COMMAND.findall(text)
    ]
    assert len(found) >= 30
    parser = build_parser()
    for path, command in found:
        assert "…" not in command, path
        assert "{" not in command, f"{path}: `{command}` may not be one word where it is pasted"
        words = shlex.split(command.replace("ADDR", ADDR))[1:]
        assert parser.parse_args(words).command == words[0], path
