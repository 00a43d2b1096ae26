"""The guide's tables of families name what the table of rows has."""

from __future__ import annotations

import re

import gguf
import pytest

from swarm_node.shards.families.rows.table import BY_TYPE, ROWS
from swarm_node.shards.formats.hf.config import hf_config
from tests import ROOT

from .gguf_files import NEWER
from .test_keys import document_of

GUIDE = (ROOT / "docs/guides/models.md").read_text(encoding="utf-8")
DENSE, SPARSE = "dense families, by `model_type`", "families with experts"


def lines(heading: str) -> list[tuple[str, str]]:
    """The two columns of each line of the table under ``heading``."""
    table = GUIDE.split(f"| {heading} |")[1].split("\n\n")[0]
    return [(line.split("|")[1], line.split("|")[2]) for line in table.splitlines()[2:]]


def named(text: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", text))


LINES = [*lines(DENSE), *lines(SPARSE)]


def test_the_guide_names_every_family() -> None:
    told = set().union(*(named(types) for types, _ in LINES))
    assert told == {name for row in ROWS for name in row.types}
    parts = next(line for line in GUIDE.splitlines() if line.startswith("Of models that see or hear"))
    assert named(parts) == {name for row in ROWS for name in row.wrappers}


@pytest.mark.parametrize(("types", "architectures"), LINES)
def test_a_line_names_the_architectures_of_its_families(types: str, architectures: str) -> None:
    told = named(types) if architectures.strip() == "the same" else named(architectures)
    has = {
        architecture
        for name in named(types)
        if (row := BY_TYPE[name]).gguf is not None
        for architecture, _ in row.gguf.kinds
    }
    assert told == has
    assert told <= {*gguf.MODEL_ARCH_NAMES.values(), *NEWER}


@pytest.mark.parametrize(("heading", "sparse"), [(DENSE, False), (SPARSE, True)])
def test_families_are_in_the_table_of_their_kind(heading: str, sparse: bool) -> None:
    """Gemma 4 is in both: its class's default has no experts."""
    for name in set().union(*(named(types) for types, _ in lines(heading))) - {"gemma4_text"}:
        config = hf_config(document_of(name), {}, "config.json")
        assert any(block.experts for block in config.blocks) == sparse, name
