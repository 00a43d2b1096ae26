"""Draws the pictures of the documentation: docs/pictures/*.svg, for light and dark pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from tests.project.test_layering import FLOORS

from .. import ROOT
from .command_line import script_parser

PICTURES = ROOT / "docs" / "pictures"
WIDTH, FLOOR = 860, 34
DESCRIPTION = (
    "Draw docs/pictures/*.svg anew. --check only compares: exit code 1 if one of them is out of date."
)

STYLE = """<style>
  text { font: 13px sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #57606a; }
  .title { font-weight: bold; }
  .band { fill: none; stroke: #d0d7de; }
  .box { fill: #f6f8fa; stroke: #57606a; }
  .mine { fill: #ddf4ff; stroke: #0969da; }
  .spare { stroke-dasharray: 5 4; }
  .way { stroke: #0969da; stroke-width: 2; fill: none; }
  .lost { stroke-dasharray: 5 4; }
  .head { fill: #0969da; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .band { fill: none; stroke: #d0d7de; }
  .box { fill: #21262d; stroke: #9198a1; }
    .mine { fill: #0c2d6b; stroke: #4493f8; }
    .way { stroke: #4493f8; }
    .head { fill: #4493f8; }
  }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L8 4 L0 8 z" class="head"/></marker></defs>"""


def swarm() -> str:
    """One client, three nodes that hold a model together, and one that may take a lost one's place."""
    parts = [
        *box(
            20,
            90,
            190,
            130,
            "mine",
            "your computer",
            ["tokenizer, embedding, head", "asks, chooses the tokens"],
        ),
        *box(290, 90, 140, 70, "box", "node A", ["blocks 0–9"]),
        *box(490, 90, 140, 70, "box", "node B", ["blocks 10–19"]),
        *box(690, 90, 140, 70, "box", "node C", ["blocks 20–29"]),
        *box(490, 190, 140, 70, "box spare", "node D", ["blocks 10–19 too"]),
        *box(
            290,
            14,
            540,
            36,
            "box",
            "",
            ["directory (DHT): signed records of who serves which blocks, and how fast"],
        ),
        way([(210, 125), (288, 125)]),
        way([(430, 125), (488, 125)]),
        way([(630, 125), (688, 125)]),
        way([(760, 160), (760, 290), (115, 290), (115, 222)]),
        way([(430, 145), (460, 145), (460, 225), (488, 225)], "way lost"),
        way([(630, 225), (660, 225), (660, 145), (688, 145)], "way lost"),
        way([(115, 90), (115, 32), (288, 32)]),
        text(249, 116, "activations", "small", "middle"),
        text(440, 310, "the last node answers the client: one token a round", "small", "middle"),
        text(560, 278, "takes over when B is lost; the answer goes on", "small", "middle"),
        text(125, 26, "finds a route", "small"),
    ]
    return svg(
        850,
        324,
        "A client passes activations through three nodes; a fourth takes over when one is lost",
        parts,
    )


def rooms() -> str:
    """Every room above those that it may import, as the table of the layering test has it."""
    parts: list[str] = []
    y = 10.0
    for package in ("node", "client", "shards", "dht", "swarm"):
        floors = FLOORS[package]
        height = 14 + FLOOR * len(floors)
        parts.append(f'<rect x="10" y="{y:g}" width="{WIDTH - 20}" height="{height}" rx="8" class="band"/>')
        parts.append(text(24, y + height / 2 + 5, f"{package}/", "title"))
        for number, floor in enumerate(reversed(floors)):
            width = (WIDTH - 120) / len(floor) - 8
            for place, room in enumerate(floor):
                label = room.removeprefix(package).strip("/") or "modules at the top"
                x = 100 + place * (width + 8)
                parts.extend(box(x, y + 10 + FLOOR * number, width, FLOOR - 6, "box", "", [label]))
        y += height + 8
    return svg(WIDTH, int(y + 4), "The rooms of the five packages; each imports only rooms below it", parts)


def box(
    x: float, y: float, width: float, height: float, kind: str, title: str, lines: Sequence[str]
) -> list[str]:
    middle = x + width / 2
    line_y = y + height / 2 + 4 - 9 * (len(lines) - (0 if title else 1))
    parts = [f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" class="{kind}"/>']
    if title:
        parts.append(text(middle, line_y, title, "title", "middle"))
        line_y += 20
    return [*parts, *(text(middle, line_y + 18 * n, line, "small", "middle") for n, line in enumerate(lines))]


def way(points: Sequence[tuple[float, float]], kind: str = "way") -> str:
    joined = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{joined}" class="{kind}" marker-end="url(#head)"/>'


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f"<title>{escape(title)}</title>", STYLE, *parts, "</svg>"]) + "\n"


DRAWN: dict[str, Callable[[], str]] = {"swarm": swarm, "rooms": rooms}


def main() -> int:
    parser = script_parser("pictures", DESCRIPTION)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    found = stale()
    if not check:
        for path, drawn in found.items():
            path.write_text(drawn, encoding="utf-8")
    print("\n".join(path.name for path in found) or "all up to date")
    return 1 if check and found else 0


def stale() -> dict[Path, str]:
    """The pictures that are out of date, and as they should be."""
    drawn = {PICTURES / f"{name}.svg": draw() for name, draw in DRAWN.items()}
    return {
        path: text for path, text in drawn.items() if not path.exists() or path.read_text("utf-8") != text
    }


if __name__ == "__main__":
    sys.exit(main())
