"""Markdown while it streams: whole blocks are printed for good, the one that grows is drawn again and again.

What the model says is shown, never obeyed: control characters, which could move the cursor or change the
terminal, appear as pictures, and links show where they lead.
"""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.markdown import Markdown
from rich.segment import Segment

from ....swarm.terminal_text import visible

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def finished(text: str) -> int:
    """How much of a growing Markdown text later text cannot change any more: up to a blank line that a line
    follows which is not indented (an indented one may go on with a list), outside fenced code."""
    end = at = 0
    fence = ""
    blank = False
    for line in text.splitlines(keepends=True):
        content = line.strip()
        if blank and content and not fence and not line[0].isspace():
            end = at
        marker = _FENCE.match(line)
        if fence:
            if marker and content.startswith(fence) and not content.strip(fence[0]):
                fence = ""
        elif marker:
            fence = marker.group(1)
        blank = not content and not fence
        at += len(line)
    return end


def rendered(text: str) -> Markdown:
    """Line breaks stay, as chats mean them, and tags are text: models write both as they are."""
    markdown = Markdown("", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").enable("table")
    markdown.parsed = parser.parse(visible(text))
    for token in markdown.parsed:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return markdown


class LastLines:
    """The end of ``body``, as much of it as the window holds, and a ``footer`` below: for a live display,
    which cannot scroll."""

    def __init__(self, body: RenderableType, footer: RenderableType) -> None:
        self._body = body
        self._footer = footer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._body, options.update(height=None), pad=False)
        for line in lines[-max(1, console.height - 3) :]:
            yield from line
            yield Segment.line()
        yield self._footer
