"""Tables for terminals of any width: no cell is cut."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from swarm_node.node.cli.shared.fitted_table import FittedTable


def _shown(width: int) -> str:
    table = FittedTable("Route", gap=1)
    table.add_column("model", no_wrap=True)
    table.add_column("where")
    table.add_column("size", justify="right")
    table.add_column("")
    table.add_row("some-model-with-a-name", "swarm (2 nodes, 1 network)", "98.4 MB", "██")
    table.add_row("a[red]b[/]", "", "1 B", "", style="dim")
    shown = StringIO()
    Console(width=width, file=shown, soft_wrap=True).print(table)
    return shown.getvalue()


def test_columns_where_they_fit() -> None:
    lines = _shown(80).splitlines()
    assert lines[1].split() == ["model", "where", "size"]
    assert lines[3].split() == [
        "some-model-with-a-name",
        "swarm",
        "(2",
        "nodes,",
        "1",
        "network)",
        "98.4",
        "MB",
        "██",
    ]


@pytest.mark.parametrize("width", [12, 20, 40])
def test_paragraphs_where_they_do_not(width: int) -> None:
    text = _shown(width)
    assert max(map(len, text.splitlines())) <= width
    joined = "".join(text.split())
    assert joined == "Routesome-model-with-a-namewhereswarm(2nodes,1network),size98.4MBabsize1B"


def test_nothing_is_cut_between() -> None:
    for width in range(10, 90):
        assert "…" not in _shown(width)
