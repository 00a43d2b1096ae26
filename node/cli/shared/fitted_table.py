"""A table that is shown as paragraphs, one a row, where a terminal is too narrow for its columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


class FittedTable(Table):
    """``gap``: columns between its columns, beside one for the box."""

    def __init__(self, title: str | None = None, *, gap: int = 0) -> None:
        super().__init__(
            title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False
        )
        self._gap = gap

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        n_columns = len(self.columns)
        least, whole = zip(*map(_widths, self.columns), strict=True)
        spare = options.max_width - sum(least) - n_columns * self._gap - (n_columns - 1)
        if spare < 0:
            yield from self._paragraphs()
            return
        for column, narrow, wide in zip(self.columns, least, whole, strict=True):
            column.width = min(wide, narrow + spare)
            spare -= column.width - narrow
        yield from super().__rich_console__(console, options)

    def _paragraphs(self) -> Iterator[Text | Padding]:
        """Of each row the first cell, and below it the others with their headings."""
        if self.title:
            yield Text.from_markup(str(self.title))
        for row, cells in zip(
            self.rows, zip(*(column.cells for column in self.columns), strict=True), strict=True
        ):
            first, *others = (Text.from_markup(str(cell)) for cell in cells)
            first.style = row.style or "bold"
            named = [
                f"{column.header} {cell.plain}"
                for column, cell in zip(self.columns[1:], others, strict=True)
                if column.header and cell.plain
            ]
            for text in (first, rest := Text(", ".join(named), style=row.style or "")):
                text.no_wrap, text.overflow = False, "fold"  # also where the console breaks no lines
            yield first
            yield Padding(rest, (0, 0, 0, 2))


def _widths(column: Column) -> tuple[int, int]:
    """What a column needs so that no text is cut, and no word broken that may not be; and for texts of one
    line."""
    header, *cells = (Text.from_markup(str(cell)) for cell in (column.header, *column.cells))
    whole = max(text.cell_len for text in (header, *cells))
    if column.no_wrap:
        return whole, whole
    words = header.plain.split()
    if column.overflow != "fold":
        words += [word for cell in cells for word in cell.plain.split()]
    return max((Text(word).cell_len for word in words), default=0), whole
