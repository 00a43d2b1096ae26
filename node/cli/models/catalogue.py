"""``swarm-node models --catalogue``: models that people want, and what each takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....shards.catalogue.catalogue import (
    CatalogueFiles,
    CatalogueModel,
    catalogue,
    find_in_catalogue,
    near_in_catalogue,
)
from ....swarm.errors import UsageError
from ....swarm.names import listed
from ...config import MAX_BATCH_TOKENS
from ...engine.memory.span_memory import SessionBytes, SpanMemory
from ..shared.fitted_table import FittedTable
from ..shared.output import answers, print_json, print_table, shown
from .plan import session_words

_KV_DTYPE = "float16"
"""What nodes on a CPU keep keys and values as, unless they are told."""
_UNCHECKED = "its figures are not compared with a published configuration"


def show_catalogue(name: str, *, as_json: bool) -> None:
    """All models, or the one called ``name``. Raises UsageError."""
    models = [named(name).model] if name else catalogue()
    if as_json:
        print_json({"catalogue": [entry(model) for model in models]})
    elif name:
        for line in details(models[0]):
            answers.print(line)
    else:
        print_table(table(models))
        if not all(model.checked for model in models):
            answers.print(f"* {_UNCHECKED}")
        answers.print(
            "More of one, and its names on the hub: `swarm-node models --catalogue NAME`\n"
            "What this machine and this swarm can do with it: `swarm-node plan NAME`"
        )


def named(name: str) -> CatalogueFiles:
    """Raises UsageError, with near names."""
    found = find_in_catalogue(name)
    if found is None:
        near = near_in_catalogue(name)
        raise UsageError(
            f"the catalogue has no model {name!r}",
            hint=f"Did you mean {listed(near)}?" if near else "`swarm-node models --catalogue` lists all.",
        )
    return found


def entry(model: CatalogueModel) -> dict[str, Any]:
    """For JSON."""
    session = _session(model)
    return {
        "name": model.name,
        "title": model.title,
        "family": model.config.family,
        "licence": model.licence,
        "checked": model.checked,
        "parameters": model.parameters,
        "n_blocks": model.config.n_blocks,
        "context_tokens": model.config.max_position_embeddings,
        "session_bytes": session.fixed,
        "bytes_per_1000_tokens": 1000 * session.per_token,
        "repository": model.repo,
        "files": [
            {
                "type": kind,
                "hub_name": files.hub_name,
                "bytes": files.nbytes,
                "largest_block_bytes": max(files.block_bytes),
            }
            for kind in model.kinds
            for files in (CatalogueFiles(model, kind),)
        ],
    }


def details(model: CatalogueModel) -> list[str]:
    """For people, with markup."""
    config = model.config
    lines = [
        f"[bold]{model.name}[/]: {shown(model.title)}, {short_count(model.parameters)} parameters",
        f"family {config.family}, {config.n_blocks} blocks, {config.max_position_embeddings} tokens of "
        f"context, licence: {shown(model.licence)}",
        f"memory beside the weights: {session_words(_session(model))}, with a cache of {_KV_DTYPE}",
    ]
    if not model.checked:
        lines.append(_UNCHECKED)
    for kind in model.kinds:
        files = CatalogueFiles(model, kind)
        lines.append(
            f"  {kind:<7} {short_bytes(files.nbytes):>7}, {short_bytes(max(files.block_bytes))} a block: "
            f"{shown(files.hub_name)}"
        )
    return lines


def _session(model: CatalogueModel) -> SessionBytes:
    config = model.config
    memory = SpanMemory.of(config.blocks, MAX_BATCH_TOKENS, _KV_DTYPE)
    return memory.session_cost(config.max_position_embeddings)


def table(models: Sequence[CatalogueModel]) -> FittedTable:
    """Fits into 80 columns."""
    found = FittedTable()
    found.add_column("model", no_wrap=True)
    for heading in ("size", "blocks", "a block", "files"):
        found.add_column(heading, justify="right", no_wrap=True)
    found.add_column("licence", no_wrap=True)
    for model in models:
        found.add_row(
            model.name if model.checked else f"{model.name}*",
            short_count(model.parameters),
            str(model.config.n_blocks),
            short_bytes(max(model.default.block_bytes)),
            f"{model.default.kind} {short_bytes(model.default.nbytes)}",
            model.licence,
        )
    return found


def short_count(parameters: int) -> str:
    """``0.13B``, ``30.5B``, ``671B``: as people call models."""
    return f"{parameters / 1e9:.3g}B" if parameters < 1e12 else f"{parameters / 1e12:.3g}T"


def short_bytes(count: int) -> str:
    """Three digits: ``3.45 MB``, ``404 GB``, ``1.09 TB``."""
    size, unit = next(
        (size, unit) for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1, "B")) if count >= size
    )
    return f"{count / size:.3g} {unit}"
