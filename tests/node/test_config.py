"""What a node tells its starter."""

from __future__ import annotations

import re
from typing import get_args

from swarm_node.node.config import EventName
from tests import ROOT


def test_every_event_is_described() -> None:
    """The type checker holds what the code tells against the same list."""
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    section = page.split("## Events of a node", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert described[0] == "event", "the table's head"
    assert sorted(described[1:]) == sorted(get_args(EventName))
