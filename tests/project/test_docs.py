"""The documentation says what is there: links, options, environment variables, and names of files."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.lab.pictures import stale
from swarm_node.node.cli.parser import build_parser
from swarm_node.node.cli.settings.keys import commands_of
from tests import ROOT

PACKAGES = ("swarm", "dht", "shards", "node", "client")
FOLDERS = (*PACKAGES, "tests", "scripts", "docs")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CLI = ROOT / "docs/reference/cli.md"
ENVIRONMENT = ROOT / "docs/reference/environment.md"
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*_?[A-Z0-9_]+")


def prose(text: str) -> str:
    """Without fenced code."""
    return re.sub(r"^(```|~~~).*?^\1[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*?) *$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        numbered = (slug if n == 0 else f"{slug}-{n}" for n in range(len(found) + 1))
        found.add(next(each for each in numbered if each not in found))
    return found


def broken_links(page: Path, text: str) -> Iterator[str]:
    for link in re.findall(r"\]\(<?([^()\s>]+)>?\)", re.sub(r"`[^`\n]*`", "", prose(text))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: there is no {target}"
        elif anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            yield f"{link}: there is no such heading"


def missing_files(text: str) -> Iterator[str]:
    """Paths and module names of this project in ``text`` that lead nowhere."""
    paths = rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w\.(?:py|c|h|md|svg)\b"
    for path in re.findall(paths, text):
        if not (ROOT / path).exists():
            yield path
    for script in re.findall(r"(?<![\w./-])scripts/[a-z_]+(?![\w./*-])", text):
        if not (ROOT / script).exists():
            yield script
    for name in re.findall(r"\bswarm_node((?:\.[a-z_]\w*)+)", text):
        if not _is_there(name.strip(".").split(".")):
            yield f"swarm_node{name}"


def _is_there(parts: list[str]) -> bool:
    """Whether ``parts`` are a package or a module, or something that its last but one part names."""
    path = ROOT.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    parent = ROOT.joinpath(*parts[:-1])
    source = parent / "__init__.py" if parent.is_dir() else parent.with_suffix(".py")
    return source.is_file() and re.search(rf"\b{parts[-1]}\b", source.read_text(encoding="utf-8")) is not None


def variables(source: str) -> set[str]:
    """Environment variables that ``source`` reads: all names in functions that look at the environment."""
    found: set[str] = set()
    tree = ast.parse(source)
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(each) for function in functions for each in ast.walk(function)}
    outside = [each for each in ast.walk(tree) if isinstance(each, ast.stmt) and id(each) not in inside]
    for part in [*functions, *(each for each in outside if not isinstance(each, ast.ClassDef))]:
        nodes = list(ast.walk(part))
        if any(isinstance(each, ast.Attribute) and each.attr in ("environ", "getenv") for each in nodes):
            calls = (each for each in nodes if isinstance(each, ast.Call))
            others = {id(word) for call in calls if ast.unparse(call.func) == "getattr" for word in call.args}
            strings = (
                each.value for each in nodes if isinstance(each, ast.Constant) and id(each) not in others
            )
            found |= {each for each in strings if isinstance(each, str) and VARIABLE.fullmatch(each)}
    return found


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not list(broken_links(page, page.read_text(encoding="utf-8")))


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "docs/README.md"
    good, fenced = "# A `b` (c)\n[x](#a-b-c) [x](measurements.md)\n", "```\n[x](not-a-link.md)\n```\n"
    text = f"{good}{fenced}[x](gone.md) [x](#b) [x](measurements.md#gone)"
    assert [each.split(":")[0] for each in broken_links(page, text)] == [
        "gone.md",
        "#b",
        "measurements.md#gone",
    ]


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name != "CHANGELOG.md"],  # which speaks of its time
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    assert not sorted(set(missing_files(page.read_text(encoding="utf-8"))))


def test_a_file_that_is_not_there_is_seen() -> None:
    text = (
        "`swarm/errors.py`, `swarm/gone.py`, scripts/demo, `scripts/gone x`, swarm_node.client.SwarmModel, "
    )
    assert sorted(
        missing_files(text + "swarm_node.client.gone_module.X, swarm_node.swarm.errors.SwarmError")
    ) == ["scripts/gone", "swarm/gone.py", "swarm_node.client.gone_module"]


COMMANDS = tuple(commands_of(build_parser()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_reference(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the command's own section, or among those of every command."""
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    options = set(re.findall(r"^  (--[a-z][a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", CLI.read_text(), re.MULTILINE | re.DOTALL))
    told = sections[command] + sections["Options of every command"]
    assert "--json" in options
    assert sorted(options - set(re.findall(r"--[a-z][a-z-]+", told))) == []


def commands(text: str) -> Iterator[str]:
    """The words behind ``swarm-node`` in lines of code that run it."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    fenced = [code for language, code in blocks if language in ("", "sh")]
    indented = re.findall(r"^ {4,}(.*)", prose(text), re.MULTILINE)
    for line in "\n".join([*fenced, *indented]).splitlines():
        call = re.match(r"\s*(?:\$ |\w[^|`]*\| )?(?:\.venv/bin/)?swarm-node ([a-z].*)", line)
        if call:
            yield re.split(r" [|>] ?| && ", call.group(1))[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_parses(page: Path) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        assert build_parser().parse_args(shlex.split(command, comments=True)).command in COMMANDS


def test_commands_are_seen() -> None:
    text = (
        "```sh\n$ swarm-node serve --x\ncat x | swarm-node chat > y\n```\n    .venv/bin/swarm-node plan # z\n"
    )
    assert list(commands(text)) == ["serve --x", "chat", "plan # z"]


def test_every_environment_variable_is_in_the_reference() -> None:
    read = set().union(*(variables(source.read_text(encoding="utf-8")) for source in sources()))
    assert {"SWARM_NODE_HOME", "GOMAXPROCS", "TZ"} <= read
    page = ENVIRONMENT.read_text(encoding="utf-8")
    told = set(re.findall(r"`([A-Z][A-Z0-9_]+)[`=]", page))
    assert sorted(read - told) == []
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    ours = {each for each in told if each.startswith("SWARM_NODE_")}
    assert sorted(each for each in ours - read if each not in tests) == []


def test_a_variable_is_seen_where_it_is_read() -> None:
    source = """
import os
HOME = os.environ.get("AT_IMPORT")
class Options:
    OTHER = "NOT_READ"
    def environment(self):
        return {"GIVEN_ON": "1", **os.environ}
def another():
    return os.getenv("ASKED") or "NOT a name"
"""
    assert variables(source) == {"AT_IMPORT", "GIVEN_ON", "ASKED"}


def test_the_pictures_are_those_of_the_code() -> None:
    assert not [path.name for path in stale()], "scripts/pictures draws them anew"
