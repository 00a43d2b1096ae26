"""What is fuzzed: a reader of foreign bytes, inputs that it takes, and how it may refuse; and every target by
name. Those of a kind are imported when one of them is run: some need torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from random import Random

from swarm_node.swarm.errors import SwarmError

from .mutation import havoc

Mutate = Callable[[Random, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A target that is ready to run.

    ``run`` takes one input and returns a word for what came of it; ``close`` gives back what it holds, and
    raises if something was left over.
    """

    seeds: Sequence[bytes]
    run: Callable[[bytes], str]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Target:
    """``prepare`` is called in the process that runs it. ``refusals``: the exceptions by which it may refuse
    an input; any other is a finding. ``mutate`` makes an input from another of the same form. ``slow_s``:
    seconds of processor time that no input may take. ``largest``: bytes of an input."""

    name: str
    prepare: Callable[[], Prepared]
    refusals: tuple[type[Exception], ...] = (SwarmError,)
    mutate: Mutate = havoc
    slow_s: float = 2.0
    largest: int = 64 * 1024


KINDS = {
    "targets_wire": ("frames", "delegated-frames", "piece-frames"),
    "targets_codecs": ("codecs",),
    "targets_streams": ("yamux", "multistream", "noise", "noise-payload", "direct"),
    "targets_records": ("records", "entries", "texts", "mdns"),
    "targets_files": (
        *("safetensors", "config", "tokenizer", "tokenizer-config", "gguf", "split-gguf", "manifest"),
        "index",
    ),
    "targets_families": (
        *("family-config", "family-gguf", "family-tensors", "family-gguf-tensors", "family-experts"),
        "family-oracle",
    ),
    "targets_quantized": ("family-quantized",),
    "targets_live": ("node", "node-states", "client", "http", "paths"),
}
NAMES = tuple(name for names in KINDS.values() for name in names)


def target_named(name: str) -> Target:
    """``name``: one of NAMES, or ``MODULE:NAME`` of a target elsewhere. Raises KeyError."""
    module, _, own = name.rpartition(":")
    module = module or next(f"{__package__}.{kind}" for kind, names in KINDS.items() if own in names)
    targets: list[Target] = import_module(module).TARGETS
    return {target.name: target for target in targets}[own]
