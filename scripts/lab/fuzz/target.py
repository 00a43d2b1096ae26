"""What is fuzzed: a reader of foreign bytes, inputs that it takes, and how it may refuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
