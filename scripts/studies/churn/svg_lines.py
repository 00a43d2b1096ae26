"""Lines over time as an SVG file, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 190, 70, 16, 30, 30
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad")


@dataclass(frozen=True, slots=True)
class Panel:
    """``lines``: (name, a value for each of ``xs``). ``low``, ``high``: of the axis; None: what is there."""

    title: str
    xs: Sequence[float]
    lines: Sequence[tuple[str, Sequence[float]]]
    low: float | None = 0.0
    high: float | None = None


def draw(panels: Sequence[Panel], x_title: str) -> str:
    """The panels, one below another."""
    height = HEIGHT * len(panels) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, number * HEIGHT)
    parts.append(_text(WIDTH / 2, height - 6, x_title, "middle"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, top: float) -> list[str]:
    values = [value for _, line in panel.lines for value in line]
    low = min(values) if panel.low is None else panel.low
    high = max(max(values) if panel.high is None else panel.high, low + 1e-9)
    first, last = panel.xs[0], max(panel.xs[-1], panel.xs[0] + 1e-9)
    right, bottom = WIDTH - RIGHT, top + HEIGHT - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - first) / (last - first) * (right - LEFT)
        return across, bottom - (y - low) / (high - low) * (bottom - top - TOP)

    parts = [_text(LEFT, top + 16, panel.title, "start")]
    for fifth in range(5):
        value = low + (high - low) * fifth / 4
        _, y = place(first, value)
        parts.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:,.6g}", "end"))
        when = first + (last - first) * fifth / 4
        parts.append(_text(place(when, low)[0], bottom + 16, f"{when:.3g}", "middle"))
    for number, (name, line) in enumerate(panel.lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(panel.xs, line, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(right - 150 * number, top + 16, name, "end", colour))
    return parts


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
