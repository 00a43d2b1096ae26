"""What became different between two states, as small as it can be told: items that are new or changed, and
items that are gone."""

from __future__ import annotations

from typing import Any

from .picture import State


def changes(before: State, after: State) -> dict[str, dict[str, Any]]:
    """By section: ``set`` has items by their ids, ``gone`` ids. Empty where nothing is different. Sections
    never go."""
    found: dict[str, dict[str, Any]] = {}
    for section, items in after.items():
        old = before.get(section, {})
        if items is old:
            continue
        new = {key: item for key, item in items.items() if key not in old or old[key] != item}
        gone = [key for key in old if key not in items]
        if new or gone:
            found[section] = {"set": new, "gone": gone}
    return found
