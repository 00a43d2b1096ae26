"""What is asked: a text to be copied, and a hundred prompts of ten kinds. All sentences are ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

TEXT = """\
The ferry to Holm leaves at ten past six, and the first thing that a visitor sees from its deck is the red \
lamp on the breakwater. Anna Lind has kept that lamp for thirty years. She cleans the glass on Mondays, \
checks the battery twice a month, and writes down every ship in a green notebook. Last winter the harbour \
froze for the first time since her childhood. Children skated between the fishing boats, a baker sold warm \
buns from a sledge, and nobody could leave the island for eleven days. When the ice broke at night, it \
sounded like furniture being moved in the next room. By breakfast the channel was open again. An engineer \
from the mainland came in spring with a box of new electronics. He said that the lamp could be watched by \
a computer from now on, and that no one would have to climb the ladder any more. Anna thanked him, showed \
him the notebook, and asked whether his computer would notice a swan that sleeps under the stairs, or a \
rope that a boy had tied to the rail for a joke. He thought about it for a while over coffee. In the end \
they agreed that the machine should count ships and she should look after everything else. The box hangs \
beside the door today, blinking quietly, while the glass still shines on Mondays."""
COPY_IT = "Repeat the following text word by word, and say nothing else."
REPLACED_EVERY = 30
"""Tokens from one replaced word to the next."""
OTHER_WORDS = (
    " garden",
    " seven",
    " silver",
    " window",
    " teacher",
    " morning",
    " river",
    " paper",
    " music",
)
"""Each is one token of SmolLM2's vocabulary."""


def replaced(ids: Sequence[int], words: Sequence[int], every: int = REPLACED_EVERY) -> list[int]:
    """``ids`` with one of them replaced after each ``every`` by one of ``words`` that it is not."""
    changed = list(ids)
    for number, place in enumerate(range(every, len(ids), every)):
        word = words[number % len(words)]
        changed[place] = word if word != ids[place] else words[(number + 1) % len(words)]
    return changed


@dataclass(frozen=True, slots=True)
class Asked:
    """``options``: of ``generate``, as JSON; a ``schema`` becomes the answer's guide."""

    kind: str
    name: str
    messages: list[dict[str, str]]
    options: dict[str, Any] = field(default_factory=dict)
    schema: str | None = None


TOPICS = ("sailing", "bread", "volcanoes", "chess", "bees", "glass", "rivers", "clocks", "trains", "gardens")
SENTENCES = (
    "The train to the coast was late because a tree had fallen on the line.",
    "My grandmother keeps her recipes in an old tin that once held tea.",
    "Nobody knew who had left the red bicycle in front of the library.",
    "The museum is closed on Tuesdays, but the garden behind it stays open.",
    "After the storm, the fishermen mended their nets on the beach for days.",
    "She learned to play the violin at an age when others stop learning.",
    "The mayor promised a new bridge, and the river laughed at the plan.",
    "We bought apples, a loaf of bread and far too much cheese.",
    "The cat sleeps on the printer since it is the warmest place in the house.",
    "In the mountains the snow stays until May, and the roads stay closed.",
)
CODE_TASKS = (
    "counts the words of a text file",
    "checks whether a number is prime",
    "sorts a list of pairs by their second item",
    "finds the longest common prefix of some strings",
    "converts a temperature from Celsius to Fahrenheit",
    "removes duplicates from a list and keeps the order",
    "reads a CSV file into a list of dictionaries",
    "computes the median of some numbers",
    "merges two sorted lists into one",
    "draws a multiplication table as text",
)
_SCHEMA = json.dumps(
    {
        "type": "array",
        "minItems": 12,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 20},
                "year": {"type": "integer"},
                "is_old": {"type": "boolean"},
            },
            "required": ["name", "year", "is_old"],
            "additionalProperties": False,
        },
    }
)


def _told(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _chat(number: int) -> list[dict[str, str]]:
    topic = TOPICS[number]
    return [
        *_told(f"Hello! I want to learn about {topic}. Where do I begin?"),
        {"role": "assistant", "content": f"Begin small: watch someone who knows {topic}, and take notes."},
        {"role": "user", "content": "And what should I do in the second week?"},
    ]


def _copy(number: int) -> list[dict[str, str]]:
    return _told(f"{COPY_IT}\n\n" + " ".join(SENTENCES[(number + step) % 10] for step in range(5)))


_KINDS: dict[str, Callable[[int], list[dict[str, str]]]] = {
    "code": lambda n: _told(f"Write a Python function that {CODE_TASKS[n]}."),
    "list": lambda n: _told(f"List twenty things that have to do with {TOPICS[n]}, one a line."),
    "chat": _chat,
    "translation": lambda n: _told(f"Translate into French, then into Spanish: {SENTENCES[n]}"),
    "JSON with a guide": lambda n: _told(f"Twelve important years in the history of {TOPICS[n]}, as JSON."),
    "sampled, 0.7": lambda n: _told(f"Write a short story about {TOPICS[n]}."),
    "sampled, 1.2": lambda n: _told(f"Write a poem about {TOPICS[n]}."),
    "sampled, penalties": lambda n: _told(f"Explain {TOPICS[n]} to a child."),
    "copy": _copy,
    "short answer": lambda n: _told(f"In one word: what comes to mind first when you hear of {TOPICS[n]}?"),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "sampled, 0.7": {"temperature": 0.7, "top_p": 0.95},
    "sampled, 1.2": {"temperature": 1.2},
    "sampled, penalties": {"temperature": 0.9, "frequency_penalty": 0.5, "repetition_penalty": 1.1},
}


def hundred() -> list[Asked]:
    """Ten prompts of each kind, kinds in turn: the first ten have one of each."""
    return [
        Asked(
            kind,
            f"{kind} {number + 1}",
            messages(number),
            {"seed": number, **_OPTIONS[kind]} if kind in _OPTIONS else {},
            _SCHEMA if "guide" in kind else None,
        )
        for number in range(10)
        for kind, messages in _KINDS.items()
    ]
