"""The prompts: for texts that repeat their prompt, and for others."""

from __future__ import annotations

from typing import Any

CODE = """\
def load_settings(path, defaults):
    settings = dict(defaults)
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, _, value = line.partition("=")
            settings[name.strip()] = value.strip()
    return settings


def save_settings(path, settings):
    with open(path, "w") as file:
        for name in sorted(settings):
            file.write(f"{name} = {settings[name]}\\n")
"""
REPORT = """\
The harbour of Lindesund was closed for nine days after the storm of 4 March. "We had never seen the water \
so high," said the harbour master, Ingrid Dahl. "The old pier was gone within an hour." Twelve boats were \
lost. The council has set aside four million crowns for a new breakwater. "It will not bring back the \
boats," said Dahl, "but it will let us sleep when the wind turns west." Work begins in June.
"""
DOCUMENTS = """\
[1] The Kestrel pump is delivered with a filter of 200 micrometres. The filter must be rinsed every 30 days. \
A clogged filter shows as a red light on the front panel.
[2] To rinse the filter, close the inlet valve, open the drain screw by two turns, take out the cartridge, \
and hold it under running water for one minute. Close the drain screw before opening the inlet valve again.
[3] The warranty covers the motor for five years and the seals for one year. It does not cover filters.
"""


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


TO_ITS_END = {"ignore_eos": False}
"""What a model says beyond the end of its answer has nothing to do with the prompt any more."""
PROMPTS: list[tuple[str, str, Any, dict[str, Any]]] = [
    (
        "repetitive",
        "code edit",
        chat(f"Rename the parameter path to filename and write out the whole file again:\n\n{CODE}"),
        TO_ITS_END,
    ),
    (
        "repetitive",
        "summary with quotes",
        chat(f"Summarise this report. Quote what the harbour master said, word by word.\n\n{REPORT}"),
        TO_ITS_END,
    ),
    (
        "repetitive",
        "answer from documents",
        chat(f"{DOCUMENTS}\nHow do I rinse the filter of the Kestrel pump? Use the words of the documents."),
        TO_ITS_END,
    ),
    ("plain", "explanation", chat("Explain how bees make honey, step by step."), {}),
    ("plain", "story", chat("Tell me a story about a clockmaker."), {"temperature": 1.0, "seed": 1}),
    ("plain", "poem", chat("Write a poem about the sea."), {"temperature": 1.2, "seed": 2}),
    ("plain", "list of words", chat("Name many animals."), {"temperature": 1.5, "seed": 3}),
]
"""Group, name, messages and options."""
