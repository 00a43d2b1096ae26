"""What a node that chooses its blocks itself tells a person."""

from __future__ import annotations

from ...swarm.placement.types import gigabytes
from ..config import NodeEvent
from .shared.output import shown


def auto_line(event: NodeEvent) -> str:
    """One line with markup; "" for events of other kinds."""
    details = event.details
    match event.event:
        case "measured":
            return (
                f"This machine: {gigabytes(_number(details['memory_bytes']))} usable, room for "
                f"{details['max_blocks']} blocks, {_number(details['decode_ms_per_block']):.3f} ms per block "
                "and token"
            )
        case "planned":
            return f"It will {shown(str(details['why']))}"
        case "standing_by":
            why = str(details["why"]).removeprefix("stands by: ")
            return f"[yellow]Standing by[/]: {shown(why)}. It looks again by itself."
        case "moving":
            return f"Moving from blocks {event.blocks} to {details['to']}: {shown(str(details['why']))}"
        case "staying":
            return f"Staying at blocks {event.blocks}: {shown(str(details['why']))}"
        case "memory_short":
            most = _number(details["max_blocks"])
            then = f"trying {most:.0f} blocks at most" if most else "not one block fits"
            return f"[yellow]Memory is short[/]: {shown(str(details['message']))}; {then}"
        case _:
            return ""


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
