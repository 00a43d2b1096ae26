"""The laboratory's reports as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..command_line import console

__all__ = ["console", "print_bench", "print_links"]


def print_bench(report: dict[str, Any]) -> None:
    for found in report["results"]:
        console.print()
        print_links({"links": [found["links"]]})
        _decode(found)
        _controls(found)
        _prefill(found)
        _bytes(found)
    console.print()
    console.print(
        "Bound of decode: what the hops and the client computed in the same run + one-way trips + "
        "activations over the rate. Of prefill: the longer of the model alone on all cores and of the bytes "
        "of the busiest access, + one-way trips. machine: what the control over plain sockets took beyond "
        "its bound, for as many ways; streams: what that over direct streams took beyond this; ours: all the "
        "rest, codecs and queues included."
    )
    console.print(", ".join(f"{key} {value}" for key, value in report["conditions"].items()))


def _decode(found: dict[str, Any]) -> None:
    headings = (
        *("tok/s", "ms a token", "bound ms", "over", "= compute", "+ client", "+ trips", "+ bytes"),
        *("- machine", "- streams", "- ours", "(queue", "codec)"),
    )
    table = _table(f"{found['name']}: decode", headings)
    controls = found["controls"]
    machine_way_s = controls["sockets"]["beyond_way_s"]
    streams_way_s = controls["streams"]["beyond_way_s"] - machine_way_s
    for mode, figures in found["modes"].items():
        ways = figures["bytes_per_token"]["ways"]
        machine_s, streams_s = ways * machine_way_s, ways * streams_way_s
        for kind, decode in figures["decode"].items():
            bound = decode["bound"]
            ours_s = decode["seconds"] - bound["seconds"] - machine_s - streams_s
            table.add_row(
                f"{mode}, {kind}",
                f"{decode['tokens_per_s']:.1f}",
                f"{1000 * decode['seconds']:.2f}",
                f"{1000 * bound['seconds']:.2f}",
                f"{100 * decode['over_bound']:.1f} %",
                *(f"{1000 * bound[part]:.2f}" for part in ("compute_s", "local_s", "trips_s", "wire_s")),
                *(
                    f"{1000 * value:.2f}"
                    for value in (machine_s, streams_s, ours_s, decode["queue_s"], decode["codec_s"])
                ),
            )
    console.print(table)


def _controls(found: dict[str, Any]) -> None:
    headings = ("ms a token", "bound ms", "over bound", "beyond, ms", "a way, ms")
    table = _table(f"{found['name']}: the same trips, bytes and busy times without our code", headings)
    for kind, control in found["controls"].items():
        table.add_row(
            {"sockets": "plain sockets", "streams": "direct streams"}[kind],
            f"{1000 * control['seconds']:.2f}",
            f"{1000 * control['bound_s']:.2f}",
            f"{100 * control['over_bound']:.1f} %",
            f"{1000 * control['beyond_s']:.2f}",
            f"{1000 * control['beyond_way_s']:.2f}",
        )
    console.print(table)


def _bytes(found: dict[str, Any]) -> None:
    headings = ("ways", "paths", "activations", "IP packets on all links", "client's up", "client's down")
    table = _table(f"{found['name']}: bytes a decoded token", headings)
    for mode, figures in found["modes"].items():
        count = figures["bytes_per_token"]
        on_links = (f"{count['on_links'][part]:.0f}" for part in ("all", "client_up", "client_down"))
        table.add_row(
            mode, str(count["ways"]), ", ".join(figures["paths"]), str(count["activations"]), *on_links
        )
    console.print(table)


def _prefill(found: dict[str, Any]) -> None:
    headings = ("tokens", "seconds", "bound s", "tok/s", "bound tok/s", "hops computed s", "repairs")
    table = _table(f"{found['name']}: prefill", headings)
    for mode, figures in found["modes"].items():
        prefill = figures["prefill"]
        table.add_row(
            mode,
            str(prefill["tokens"]),
            f"{prefill['seconds']:.2f}",
            f"{prefill['bound_s']:.2f}",
            f"{prefill['tokens_per_s']:.0f}",
            f"{prefill['bound_tokens_per_s']:.0f}",
            " + ".join(f"{seconds:.2f}" for seconds in prefill["hops_compute_s"]),
            str(figures["repairs"]),
        )
    console.print(table)


def print_links(report: dict[str, Any]) -> None:
    """``links``: ``figures.figures`` of some, asked and measured."""
    headings = (
        *(
            "RTT asked ms",
            "measured p50",
            "max",
            "rate asked Mbit/s",
            "TCP goodput",
            "loss asked",
            "measured",
        ),
        *("delivered late ms", "forwarder CPU s"),
    )
    table = _table("The emulation itself", headings)
    for number, row in enumerate(report["links"]):
        rate = row["rate"]
        table.add_row(
            str(number + 1),
            f"{row['rtt_ms']:.1f}",
            _or_none(row["measured_rtt_p50_ms"], "{:.2f}"),
            _or_none(row["measured_rtt_max_ms"], "{:.2f}"),
            "none" if rate is None else f"{rate / 1e6:.0f}",
            f"{row['measured_goodput'] / 1e6:.0f}",
            f"{100 * row['loss']:.1f} %",
            f"{100 * row['measured_loss']:.1f} %",
            f"{row['forwarder_late_ms']:.3f}",
            f"{row['forwarder_cpu_s']:.2f}",
        )
    console.print(table)


def _or_none(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table
