"""The LAN laboratory's figures for people."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..command_line import console

MB = 1e6


def print_story(report: dict[str, Any]) -> None:
    start, plan = report["start"], report["plan"]
    machines = Table(
        "machine", "processor", "memory", "link", "sent", "received", "of it from studio", box=SIMPLE_HEAD
    )
    for machine in report["machines"]:
        went = report["traffic"][machine["name"]]
        machines.add_row(
            machine["name"],
            f"{machine['cores']:.1f} cores",
            machine["memory"],
            f"{machine['rate'] / 1e6:.0f} Mbit/s",
            *(f"{went[way] / MB:.1f} MB" for way in ("sent", "got", "from_origin")),
        )
    console.print(machines)
    sent = start["traffic"][report["machines"][0]["name"]]["sent"]
    console.print(f"From the last start to the guest's first token: {start['first_token_s']:.1f} s.")
    console.print(f"Until then {sent / MB:.1f} MB left the machine with the file.")
    console.print(
        f"Plan: {_spans(plan['chosen'])}: {plan['chosen_ms']:.2f} ms a token; the best of {plan['tried']} "
        f"({_spans(plan['best'])}): {plan['best_ms']:.2f} ms."
    )
    answers = Table(
        "answer",
        "tokens/s",
        "median",
        "longest pause",
        "repairs",
        "same tokens",
        "route at its end",
        box=SIMPLE_HEAD,
    )
    for key, name in (
        ("alone", "the four"),
        ("join", "a fifth joins meanwhile"),
        ("with_it", "with the fifth"),
        ("kill", "the fifth is killed"),
    ):
        answer = report[key]
        answers.add_row(
            name,
            f"{answer['tokens_per_s']:.1f}",
            f"{answer['median_ms']:.1f} ms",
            f"{answer['longest_ms']:.0f} ms",
            str(answer["repairs"]),
            "yes" if answer["same_tokens"] else "no",
            _spans(answer["route"]),
        )
    console.print(answers)


def _spans(spans: list[Any]) -> str:
    return ", ".join(f"{name} {blocks}" for name, blocks in spans)
