"""Which connection ends when there are too many: one of the address group that has most. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from ..address_groups import address_group
from .connection import YamuxConnection


def loser_to(newcomer: str, accepted: Collection[YamuxConnection]) -> YamuxConnection | None:
    """Which of the connections that others have opened ends for one from the address ``newcomer``: one that
    is not in use, of its own group or a larger one; or else one of a larger group. None: there is none."""
    sizes = Counter(address_group(each.remote_maddr) for each in accepted)
    own = sizes[address_group(newcomer)]

    def may_go(each: YamuxConnection) -> bool:
        size = sizes[address_group(each.remote_maddr)]
        return size > own + 1 if each.in_use else size >= own

    def order(each: YamuxConnection) -> tuple[bool, int, float]:
        return each.in_use, -sizes[address_group(each.remote_maddr)], each.heard_at

    return min(filter(may_go, accepted), key=order, default=None)


def heaviest(
    connections: Collection[YamuxConnection], weight: Callable[[YamuxConnection], float]
) -> YamuxConnection:
    """The one of most weight, of the group that has most."""
    of_group: Counter[str] = Counter()
    for each in connections:
        of_group[address_group(each.remote_maddr)] += weight(each)  # type: ignore[assignment]
    return max(connections, key=lambda each: (of_group[address_group(each.remote_maddr)], weight(each)))
