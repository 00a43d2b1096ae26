"""The benchmark's report as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from ..command_line import console
from .starts import starts_table


def print_report(report: dict[str, Any]) -> None:
    printers = {
        "one-stream": _one_stream,
        "whole": _whole,
        "streams": _streams,
        "interference": _interference,
        "engine": _engine,
        "experts": _experts,
        "kernels": _kernels,
        "prefix": _prefix,
        "pipeline": _pipeline,
        "memory": _memory,
        "start": lambda found: console.print(starts_table(found)),
    }
    for name, found in report["parts"].items():
        console.print()
        printers[name](found)
    console.print()
    console.print(
        ", ".join(f"{key} {value}" for key, value in report["conditions"].items() if key != "command")
    )


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _one_stream(found: dict[str, Any]) -> None:
    from swarm_node.node.cli.shared.output import route_table

    contenders = found["contenders"]
    ours = next(iter(contenders.values()))
    headings = (
        *("decode tok/s", "ours ×", "processor ms a token", "ours ×"),
        *("prefill s", "ours × as fast", "of tokens", "RSS MB"),
    )
    table = _table("One stream, greedy", headings)
    for name, figures in contenders.items():
        table.add_row(
            name,
            f"{figures['decode_tokens_per_s']:.1f}",
            f"{ours['decode_tokens_per_s'] / figures['decode_tokens_per_s']:.2f}",
            f"{figures['processor_ms_per_token']:.2f}",
            f"{ours['processor_ms_per_token'] / figures['processor_ms_per_token']:.2f}",
            f"{figures['prefill_s']:.2f}",
            f"{figures['prefill_s'] / ours['prefill_s']:.2f}",
            f"{figures['prefill_tokens']:.0f}",
            f"{figures['rss_mb']:.0f}",
        )
    console.print(table)
    console.print("Where a decoded token's time goes:")
    console.print(route_table(found["hops"]))
    timings = found["timings"]
    console.print(
        f"client: head and sampling {1000 * timings['local_s'] / timings['new_tokens']:.2f} ms a token; "
        f"import swarm_node.client {found['import_s']:.2f} s"
    )


def _whole(found: dict[str, Any]) -> None:
    names = ("token ms", "fastest", "processor ms", "least")
    table = _table(
        f"One process decodes {found['file']}", [word for name in names for word in (name, "ours ×")]
    )
    contenders = found["contenders"]
    for name, figures in contenders.items():
        ours = contenders[name.replace("llama.cpp", "swarm-node")]
        keys = ("token_ms", "fastest_token_ms", "processor_ms", "least_processor_ms")
        cells = ((f"{figures[key]:.2f}", f"{figures[key] / ours[key]:.2f}") for key in keys)
        table.add_row(name, *(text for cell in cells for text in cell))
    console.print(table)


def _streams(found: dict[str, Any]) -> None:
    headings = (
        *("tok/s, all decoding", "× one", "of the engine alone", "with prefill", "slowest/fastest"),
        *("first token s", "between tokens p50 ms", "p99 ms", "errors"),
    )
    table = _table("Streams side by side", headings)
    one = found["swarm"].get("1", {}).get("aggregate_tokens_per_s")
    rows = [(f"{count} from one client", figures) for count, figures in found["swarm"].items()]
    if "processes" in found:
        rows.append((f"{found['processes']['streams']} clients", found["processes"]))
    for name, figures in rows:
        if "aggregate_tokens_per_s" not in figures:
            table.add_row(name, *["-"] * (len(headings) - 1), f"{figures['errors']:.0f}")
            continue
        table.add_row(
            name,
            f"{figures['aggregate_tokens_per_s']:.0f}",
            f"{figures['aggregate_tokens_per_s'] / one:.2f}" if one else "-",
            f"{figures['of_engine']:.2f}" if "of_engine" in figures else "-",
            f"{figures['with_prefill_tokens_per_s']:.0f}",
            f"{figures['fairness']:.2f}",
            f"{figures['first_token_s']:.2f}",
            f"{figures['between_tokens_p50_ms']:.1f}",
            f"{figures['between_tokens_p99_ms']:.1f}",
            f"{figures['errors']:.0f}",
        )
    for name, counts in found["local"].items():
        base = counts.get("1", {}).get("aggregate_tokens_per_s")
        for count, figures in counts.items():
            table.add_row(
                f"{count}, {name}",
                f"{figures['aggregate_tokens_per_s']:.0f}",
                f"{figures['aggregate_tokens_per_s'] / base:.2f}" if base else "-",
                "-",
                f"{figures['with_prefill_tokens_per_s']:.0f}",
                *["-"] * 5,
            )
    console.print(table)


def _interference(found: dict[str, Any]) -> None:
    title = f"One decodes while another sends prompts of {found['prompt_tokens']} tokens back to back"
    table = _table(title, ("tokens", "p50 ms", "p90 ms", "p99 ms", "max ms", "mean ms"))
    for name in ("alone", "beside"):
        figures = found[name]
        times = (f"{figures[key]:.1f}" for key in ("p50", "p90", "p99", "max", "mean"))
        table.add_row(name, str(figures["tokens"]), *times)
    console.print(table)
    console.print(
        f"Slices of a prompt take {found['slice_target_ms']:.0f} ms. At each of {found['hops']} hops "
        f"a token may wait for one: {found['expected_growth_ms']:.0f} ms, where cores are free. "
        "On the average a hop computed "
        f"{found['extra_compute_ms']:.1f} ms longer, {found['rows_per_batch']:.0f} rows a batch, "
        f"{found['prefill_tokens_per_s']:.0f} prompt tokens/s."
    )


def _engine(found: list[dict[str, Any]]) -> None:
    for run in found:
        threads = run["threads"]
        title = f"Engine alone, {threads} thread{'s' * (threads > 1)}, {run['kernels']}, {run['weights']}"
        headings = ("tok/s", "step ms", "MB read a step", "GB/s", "share of limit", "of uncached limit")
        table = _table(title, headings)
        for figures in run["batches"]:
            table.add_row(
                f"batch {figures['batch']}",
                f"{figures['tokens_per_s']:.0f}",
                f"{figures['step_ms']:.2f}",
                f"{figures['step_bytes'] / 1e6:.0f}",
                f"{figures['read_bytes_per_s'] / 1e9:.1f}",
                f"{100 * figures['share_of_bandwidth']:.0f} %",
                f"{100 * figures['share_of_uncached_bandwidth']:.0f} %",
            )
        console.print(table)
        console.print(
            f"prefill {run['prefill_tokens_per_s']:.0f} tokens/s; uncached memory: read "
            f"{run['read_bytes_per_s'] / 1e9:.1f} GB/s, copy {run['copy_bytes_per_s'] / 1e9:.1f} GB/s "
            f"(read and written); KV {run['kv_dtype']}, {run['context']} tokens a session"
        )


def _experts(found: list[dict[str, Any]]) -> None:
    for run in found:
        threads = run["threads"]
        title = f"64 experts, 8 a row, int4, {threads} thread{'s' * (threads > 1)}"
        headings = ("step ms", "MB read a step", "GB/s", "share of memory's", "in the quietest tenth")
        table = _table(title, headings)
        for figures in run["batches"]:
            table.add_row(
                f"{figures['rows']} row{'s' * (figures['rows'] > 1)}",
                f"{figures['step_ms']:.2f}",
                f"{figures['step_bytes'] / 1e6:.0f}",
                f"{figures['read_bytes_per_s'] / 1e9:.1f}",
                f"{100 * figures['share_of_bandwidth']:.0f} %",
                f"{100 * figures['share_of_best_bandwidth']:.0f} %",
            )
        console.print(table)


def _kernels(found: list[dict[str, Any]]) -> None:
    for run in found:
        threads, contenders = run["threads"], run["contenders"]
        others = [name for name in contenders if name != "this"]
        title = f"One row times 4096 x 4096, {threads} thread{'s' * (threads > 1)}, in the quietest tenth"
        headings = ["bits", "us", "GB/s", "share of memory's"]
        table = _table(title, [*headings, *(part for name in others for part in (f"{name} us", "ours ×"))])
        for qtype, ours in contenders["this"].items():
            cells = [
                f"{ours['bits']:.2f}",
                f"{ours['product_us']:.0f}",
                f"{ours['read_bytes_per_s'] / 1e9:.1f}",
            ]
            cells.append(f"{100 * ours['share_of_best_bandwidth']:.0f} %")
            for name in others:
                theirs = contenders[name].get(qtype)
                cells += ["", ""] if theirs is None else [f"{theirs['product_us']:.0f}"]
                cells += [] if theirs is None else [f"{theirs['product_us'] / ours['product_us']:.2f}"]
            table.add_row(qtype, *cells)
        console.print(table)


def _prefix(found: dict[str, Any]) -> None:
    title = f"A chat of {found['with']['first_turn_tokens']:.0f} tokens goes on: time to first token"
    table = _table(title, ("first turn s", "second turn s", "of tokens", "× shorter"))
    for name in ("without", "with"):
        figures = found[name]
        table.add_row(
            f"{name} prefix cache",
            f"{figures['first_turn_s']:.3f}",
            f"{figures['second_turn_s']:.3f}",
            f"{figures['second_turn_tokens']:.0f}",
            f"{found['ratio']:.1f}" if name == "with" else "",
        )
    console.print(table)
    if not found["same_answers"]:
        console.print("[bold red]The answers with and without the cache differ.[/]")


def _pipeline(found: dict[str, Any]) -> None:
    threads = f"{found['node_threads']} thread each"
    title = f"Prefill of {found['tokens']} tokens over {found['hops']} hops of {threads}, chunked and whole"
    table = _table(title, ("one hop after the other s", "at the same time s", "× faster", "chunks"))
    for way, figures in found["ways"].items():
        table.add_row(
            way,
            f"{figures['sequential_s']:.2f}",
            f"{figures['pipelined_s']:.2f}",
            f"{figures['ratio']:.2f}",
            f"{figures['chunks']:.0f}",
        )
    console.print(table)


def _memory(found: dict[str, Any]) -> None:
    headings = (
        *("RSS idle", "RSS busy", "weights in file", "weights held", "KV used"),
        *("minimum", "imports", "overhead", "p2pd"),
    )
    table = _table(f"Memory of a node with {found['nodes'][0]['sessions']} sessions, MB", headings)
    keys = (
        *("idle_rss_mb", "rss_mb", "weights_in_file_mb", "weights_held_mb", "kv_used_mb"),
        *("minimum_mb", "imports_mb", "overhead_mb", "p2pd_rss_mb"),
    )
    for node in found["nodes"]:
        table.add_row(f"blocks {node['blocks']}", *(f"{node[key]:.0f}" for key in keys))
    console.print(table)
    console.print(
        "minimum: weights as the file has them and the KV pages in use; "
        "overhead: RSS above minimum and imports"
    )
