"""One stream through a local swarm against transformers and llama.cpp, in one run, with ratios.

Each contender runs in a process of its own, one after another, --repeat times over, so that a noisy machine
is noisy for all; the figures are medians.

  scripts/bench                          table
  scripts/bench --json bench.json        and the figures for machines
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from local_swarm import LocalSwarm, split_evenly
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / ".models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "Explain how a sailing ship can move against the wind, step by step."
FILLER = "The ship sailed on through the night while the crew kept watch over the dark water. "
"""Repeated into the long prompt; what it says does not matter, how many tokens it has does."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


# Contenders. Each returns seconds and sizes of one run, measured in its own process.


def run_transformers(arguments: argparse.Namespace) -> dict[str, Any]:
    import torch
    from transformers_oracle import load_transformers

    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_transformers(MODEL)
    chat = [{"role": "user", "content": PROMPT}]
    short = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    long = _long_prompt(tokenizer.encode, arguments.prefill_tokens)

    def decode(ids: list[int], new_tokens: int) -> tuple[float, float, list[int]]:
        with torch.inference_mode():
            began = time.perf_counter()
            output = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
            token = int(output.logits[0, -1].argmax())
            prefilled = time.perf_counter()
            tokens = [token]
            for _ in range(new_tokens - 1):
                output = model(
                    torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True
                )
                token = int(output.logits[0, -1].argmax())
                tokens.append(token)
            return prefilled - began, time.perf_counter() - prefilled, tokens

    decode(short, 4)
    _, decode_s, _ = decode(short, arguments.new_tokens)
    prefill_s, _, _ = decode(long, 1)
    return {
        "decode_tokens_per_s": (arguments.new_tokens - 1) / decode_s,
        "prefill_s": prefill_s,
        "prefill_tokens": len(long),
        "rss_mb": _rss_mb(),
    }


def run_llama(arguments: argparse.Namespace) -> dict[str, Any]:
    from llama_cpp import Llama

    llama = Llama(
        str(MODEL),
        n_ctx=2048,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        verbose=False,
    )
    chat = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    short = llama.tokenize(chat.encode(), add_bos=False, special=True)
    long = _long_prompt(lambda text: llama.tokenize(text.encode(), add_bos=False), arguments.prefill_tokens)

    def decode(ids: list[int], new_tokens: int) -> tuple[float, float]:
        llama.reset()
        began = time.perf_counter()
        llama.eval(ids)
        token = llama.sample(temp=0.0)
        prefilled = time.perf_counter()
        for _ in range(new_tokens - 1):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        return prefilled - began, time.perf_counter() - prefilled

    decode(short, 4)
    _, decode_s = decode(short, arguments.new_tokens)
    prefill_s, _ = decode(long, 1)
    return {
        "decode_tokens_per_s": (arguments.new_tokens - 1) / decode_s,
        "prefill_s": prefill_s,
        "prefill_tokens": len(long),
        "rss_mb": _rss_mb(),
    }


def run_swarm(arguments: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    from swarm_node.client import SwarmModel

    SwarmModel.connect  # noqa: B018 - loads what a person's first line of code loads
    import_s = time.perf_counter() - began
    from swarm_node.shards.checkpoint import open_checkpoint

    with open_checkpoint(str(MODEL)) as checkpoint:
        long_prompt = _long_prompt(checkpoint.tokenizer().encode, arguments.prefill_tokens)
    with SwarmModel.connect(
        model=str(MODEL),
        initial_peers=arguments.initial_peers,
        wire_codec=arguments.wire_codec,
        threads=arguments.threads,
        wait=30,
    ) as model:
        model.generate(PROMPT, max_new_tokens=8, ignore_eos=True)
        short = model.generate_detailed(PROMPT, max_new_tokens=arguments.new_tokens, ignore_eos=True)
        long = model.generate_detailed(long_prompt, max_new_tokens=1)
        return {
            "decode_tokens_per_s": short.timings.tokens_per_s,
            "prefill_s": long.timings.prefill_s,
            "prefill_tokens": len(long.prompt_token_ids),
            "rss_mb": _rss_mb(),
            "import_s": import_s,
            "hops": [hop.as_dict() for hop in short.hops],
            "timings": short.timings.as_dict(),
        }


CONTENDERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "transformers": run_transformers,
    "llama.cpp": run_llama,
    "swarm": run_swarm,
}


def _long_prompt(encode: Callable[[str], Sequence[int]], tokens: int) -> list[int]:
    """``tokens`` tokens of plain text."""
    text = FILLER * (tokens // len(FILLER.split()) + 1)
    return list(encode(text))[:tokens]


def _rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


# The run.


def measure(
    name: str, threads: int, arguments: argparse.Namespace, initial_peers: Sequence[str] = ()
) -> dict[str, Any]:
    """One run of a contender in a fresh process."""
    options = [
        *("--contender", name, "--threads", str(threads), "--wire-codec", arguments.wire_codec),
        *("--new-tokens", str(arguments.new_tokens), "--prefill-tokens", str(arguments.prefill_tokens)),
    ]
    for peer in initial_peers:
        options += ["--initial-peers", peer]
    done = subprocess.run(
        [sys.executable, __file__, *options], capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_all(arguments: argparse.Namespace) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    node_threads = arguments.threads or max(1, cores // arguments.nodes)
    # The local contenders with one thread and with all: more are not always faster.
    local = sorted({1, cores}) if arguments.threads is None else [arguments.threads]
    names = [
        (name, threads)
        for name in CONTENDERS
        if _available(name, arguments)
        for threads in ([node_threads] if name == "swarm" else local)
    ]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {name: [] for name in names}
    serving: list[dict[str, Any]] = []
    for number in range(arguments.repeat):
        for name, threads in names:
            console.print(f"run {number + 1} of {arguments.repeat}: {name}, {threads} threads ...")
            results = runs[name, threads]
            if name != "swarm":
                results.append(measure(name, threads, arguments))
                continue
            options = ["--threads", str(threads), "--kv-cache-tokens", "8192"]
            with LocalSwarm(MODEL, split_evenly(30, arguments.nodes), serve_options=options) as swarm:
                # The client has nothing to do while a node computes, and the nodes nothing while it does.
                results.append(measure(name, cores, arguments, swarm.initial_peers))
                serving = [
                    {
                        "blocks": node.events[-1]["blocks"],
                        "rss_mb": psutil.Process(node.pid).memory_info().rss / 1e6,
                    }
                    for node in swarm.nodes
                ]
    return {
        "conditions": {
            "model": MODEL.name,
            "nodes": arguments.nodes,
            "node_threads": node_threads,
            "cores": cores,
            "machine": platform.machine(),
            "wire_codec": arguments.wire_codec,
            "new_tokens": arguments.new_tokens,
            "repeat": arguments.repeat,
        },
        "contenders": {
            "swarm" if name == "swarm" else f"{name}, {threads} thread{'s' * (threads > 1)}": _summary(
                results
            )
            for (name, threads), results in runs.items()
        },
        "serving": serving,
    }


def _available(name: str, arguments: argparse.Namespace) -> bool:
    module = {"llama.cpp": "llama_cpp", "transformers": "transformers"}.get(name)
    found = module is None or importlib.util.find_spec(module) is not None
    if not found:
        console.print(f"{name} is not installed: left out")
    return found and (not arguments.only or name in arguments.only)


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the plain figures; the hops of the run with the median speed."""
    summary: dict[str, Any] = {
        key: statistics.median(result[key] for result in results)
        for key, value in results[0].items()
        if isinstance(value, int | float)
    }
    middle = sorted(results, key=lambda result: result["decode_tokens_per_s"])[len(results) // 2]
    return summary | {key: middle[key] for key in ("hops", "timings") if key in middle}


def print_tables(report: dict[str, Any]) -> None:
    contenders = report["contenders"]
    plain = [figures for name, figures in contenders.items() if name.startswith("transformers")]
    base = max(plain, key=lambda figures: figures["decode_tokens_per_s"], default=None)
    table = Table(title="One stream, greedy", title_justify="left")
    table.add_column("")
    for heading in ("decode tok/s", "× best transformers", "prefill s", "of tokens", "RSS MB"):
        table.add_column(heading, justify="right")
    for name, figures in contenders.items():
        ratio = figures["decode_tokens_per_s"] / base["decode_tokens_per_s"] if base else None
        table.add_row(
            {"swarm": f"swarm, {report['conditions']['nodes']} nodes + client"}.get(name, name),
            f"{figures['decode_tokens_per_s']:.1f}",
            f"{ratio:.2f}" if ratio else "-",
            f"{figures['prefill_s']:.2f}",
            f"{figures['prefill_tokens']:.0f}",
            f"{figures['rss_mb']:.0f}",
        )
    console.print(table)
    if "swarm" in contenders:
        from swarm_node.node.cli_generate import route_table

        console.print(route_table(contenders["swarm"]["hops"]))
        console.print(
            "serving: " + ", ".join(f"{n['blocks']} {n['rss_mb']:.0f} MB" for n in report["serving"])
        )
        console.print(f"import swarm_node.client: {contenders['swarm']['import_s']:.2f} s")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=3, help="serving processes (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, help="each process (default: nodes share the cores, others run with 1 and all)"
    )
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prefill-tokens", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--wire-codec", default="int8")
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="leave the others out")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE (- is standard output)")
    parser.add_argument("--contender", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--initial-peers", action="append", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        sys.stdout.write(json.dumps(CONTENDERS[arguments.contender](arguments)) + "\n")
        return 0
    report = run_all(arguments)
    print_tables(report)
    if arguments.json == "-":
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    elif arguments.json:
        Path(arguments.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
