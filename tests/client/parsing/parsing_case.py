"""What the tests of parsing share: readers of a dialect, and what they hear."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st

from swarm_node.client.parsing.dialect import dialect_of
from swarm_node.client.parsing.feed import BEGIN, END, control
from swarm_node.client.parsing.pieces import ToolCall, Words
from swarm_node.client.parsing.reader import Reader


@dataclass
class Heard:
    """``calls``: without ids that the reader made up."""

    text: str = ""
    thoughts: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def reader(
    template: str = "<tool_call>",
    special: Collection[str] = (),
    *,
    names: Iterable[str] = (),
    schemas: Mapping[str, Any] | None = None,
    prompt: str = "",
    **options: Any,
) -> Reader:
    """``template`` and ``special``: of the model; ``prompt``: its end."""
    dialect = dialect_of(template, special)
    return dialect.reader(
        schemas if schemas is not None else dict.fromkeys(names),
        thinking=dialect.opened(prompt),
        **options,
    )


def heard(reading: Reader, pieces: Iterable[str], *, flush: bool = True) -> Heard:
    found = Heard()
    for step in (*map(reading.push, pieces), *([reading.flush()] if flush else ())):
        for piece in step:
            if isinstance(piece, ToolCall):
                found.calls.append(replace(piece, id=""))
                found.ids.append(piece.id)
            elif isinstance(piece, Words):
                found.text += piece.text
            else:
                found.thoughts += piece.text
    assert not {BEGIN, END} & set(
        found.text + found.thoughts + "".join(call.arguments for call in found.calls)
    )
    return found


def spelled(said: str, special: Collection[str]) -> str:
    """``said`` as a feed has it, where what spells a control token is one."""
    return re.sub("|".join(map(re.escape, special)) or "(?!)", lambda found: control(found[0]), said)


def cut(draw: st.DrawFn, said: str) -> list[str]:
    """Pieces of a feed's text; a control token comes whole."""
    atoms = re.findall(f"{BEGIN}[^{END}]*{END}|.", said, re.DOTALL)
    cuts = sorted(draw(st.lists(st.integers(0, len(atoms)), max_size=8)))
    return ["".join(atoms[a:b]) for a, b in pairwise([0, *cuts, len(atoms)])]
