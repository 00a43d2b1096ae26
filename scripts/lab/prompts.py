"""What the benchmark's clients ask, and where the model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .. import ROOT

MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
BLOCKS = 30

PROMPT = "Explain how a sailing ship can move against the wind, step by step."
FILLER = "The ship sailed on through the night while the crew kept watch over the dark water. "
"""Repeated into the long prompts; what it says does not matter, how many tokens it has does."""
TOPICS = ("sailing", "bread", "volcanoes", "chess", "bees", "glass", "rivers", "clocks")


def question(number: int) -> str:
    """A short prompt of its own for each stream, so that none finds another's in a cache."""
    return f"Question {number}. Explain how {TOPICS[number % len(TOPICS)]} works, step by step."


def long_prompt(encode: Callable[[str], Sequence[int]], tokens: int, number: int = 0) -> list[int]:
    """``tokens`` tokens of plain text that begin differently for each ``number``."""
    text = f"Log {number}. " + FILLER * (tokens // len(FILLER.split()) + 1)
    return list(encode(text))[:tokens]
