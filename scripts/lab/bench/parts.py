"""The parts of the benchmark, run one after another against one swarm, each client in its own process."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..command_line import console, say
from ..local_swarm import LocalSwarm, split_evenly
from ..processes.child import launch_python
from ..processes.worker import run_in_process, workers
from ..prompts import BLOCKS, MODEL
from .clients import StreamRun, summarize
from .figures import medians
from .kernels import QTYPES
from .memory import memory
from .pipeline import pipeline
from .starts import starts

PARTS = (
    "one-stream",
    "whole",
    "streams",
    "interference",
    "engine",
    "experts",
    "kernels",
    "prefix",
    "pipeline",
    "memory",
    "start",
)
SWARM_PARTS = {"one-stream", "streams", "interference", "prefix"}
CLIENTS = 8
"""Client processes that decode side by side."""


class Bench:
    """One run of the benchmark: its sizes, and its swarm once that is up."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.cores = os.cpu_count() or 1
        self.node_threads = arguments.threads or "default"
        self.client_threads = arguments.client_threads or self.cores
        # The local contenders with one thread and with all: more are not always faster.
        self.local_threads = sorted({1, self.cores})
        self.repeat = arguments.repeat or (1 if arguments.quick else 3)
        self.new_tokens = arguments.new_tokens or (48 if arguments.quick else 64)
        self.serve_options = ["--kv-cache-tokens", "32768"]
        if arguments.threads is not None:
            self.serve_options += ["--threads", str(arguments.threads)]
        self.spans = split_evenly(BLOCKS, arguments.nodes)
        self.llama_python: str = arguments.llama_python or sys.executable
        self.peers: list[str] = []
        self.swarm: LocalSwarm | None = None

    def swarm_process(self, function: str, **options: Any) -> Any:
        """A client in a measuring process."""
        return run_in_process(
            f"scripts.lab.bench.clients:{function}",
            initial_peers=self.peers,
            threads=self.client_threads,
            **options,
        )

    def one_stream(self) -> dict[str, Any]:
        sizes = {
            "new_tokens": self.new_tokens,
            "prefill_tokens": self.arguments.prefill_tokens,
            "repeat": self.repeat,
        }
        found: dict[str, Any] = {}
        name = f"swarm, {self.arguments.nodes} nodes and a client"
        say(f"one stream: {name}")
        swarm = self._one_stream_of(self.swarm, sys.executable, sizes)
        found[name] = medians(swarm["runs"]) | {"rss_mb": swarm["rss_mb"]}
        for python in self.arguments.against:
            say(f"one stream: {name}, of {python}")
            launch = partial(launch_python, python=python)
            with LocalSwarm(MODEL, self.spans, serve_options=self.serve_options, launch=launch) as other:
                figures = self._one_stream_of(other, python, sizes)
            found[f"{name}, of {python}"] = medians(figures["runs"]) | {"rss_mb": figures["rss_mb"]}
        locals_ = [] if self.arguments.quick else [("transformers", "transformers", sys.executable)]
        locals_ += [("llama.cpp", "llama_cpp", self.llama_python)]
        for name, module, python in locals_:
            if not installed(module, python):
                continue
            for threads in self.local_threads[-1:] if self.arguments.quick else self.local_threads:
                title = f"{name}, {threads} thread{'s' * (threads > 1)}"
                say(f"one stream: {title}")
                # Slow, steady and not ours: two runs say enough.
                figures = run_in_process(
                    f"scripts.lab.bench.locals:{module}",
                    python=python,
                    threads=threads,
                    **{**sizes, "repeat": min(2, self.repeat)},
                )
                found[title] = medians(figures["runs"]) | {"rss_mb": figures["rss_mb"]}
        middle = sorted(swarm["runs"], key=lambda run: run["decode_tokens_per_s"])[self.repeat // 2]
        return {
            "contenders": found,
            "import_s": swarm["import_s"],
            "hops": middle["hops"],
            "prefill_hops": middle["prefill_hops"],
            "timings": middle["timings"],
        }

    def _one_stream_of(self, swarm: LocalSwarm | None, python: str, sizes: dict[str, int]) -> dict[str, Any]:
        """A client of ``python`` in a measuring process."""
        nodes = [] if swarm is None else [*swarm.nodes, *filter(None, [swarm.bootstrap])]
        return run_in_process(
            "scripts.lab.bench.clients:one_stream",
            python=python,
            initial_peers=[] if swarm is None else swarm.initial_peers,
            pids=[node.process.pid for node in nodes],
            threads=self.client_threads,
            wire_codec=self.arguments.wire_codec,
            **sizes,
        )

    def streams(self) -> dict[str, Any]:
        counts = [1, 8, 32] if self.arguments.quick else [1, 2, 4, 8, 16, 32]
        sizes = {"new_tokens": self.new_tokens, "repeat": self.repeat}
        say("streams: from one client")
        found = self.swarm_process("concurrent_streams", counts=counts, **sizes)
        report: dict[str, Any] = {
            "swarm": {str(each["streams"]): medians(each["runs"]) for each in found},
            "local": {},
        }
        if not self.arguments.quick:
            say(f"streams: {CLIENTS} client processes")
            report["processes"] = self._client_processes()
        if installed("llama_cpp", self.llama_python):
            for threads in self.local_threads[-1:]:
                name = f"llama.cpp batch, {threads} thread{'s' * (threads > 1)}"
                say(f"streams: {name}")
                local = [1, 8] if self.arguments.quick else [1, 8, 32]
                found = run_in_process(
                    "scripts.lab.bench.locals:llama_cpp_streams",
                    python=self.llama_python,
                    threads=threads,
                    counts=local,
                    **sizes,
                )
                report["local"][name] = {str(each["streams"]): medians(each["runs"]) for each in found}
        return report

    def _client_processes(self) -> dict[str, Any]:
        options = [
            {"initial_peers": self.peers, "threads": 1, "number": number, "new_tokens": 2 * self.new_tokens}
            for number in range(CLIENTS)
        ]
        with workers("scripts.lab.bench.clients:single_stream_when_told", options) as clients:
            for client in clients:
                client.wait_ready()
            for client in clients:
                client.order()
            results = [client.result() for client in clients]
        runs = [StreamRun(each["times"], each["tokens"], each["error"]) for each in results]
        figures = summarize(runs, min(each["began"] for each in results))
        figures.pop("rss_mb", None)
        return figures | {"streams": CLIENTS}

    def interference(self) -> dict[str, Any]:
        seconds = 4.0 if self.arguments.quick else 10.0
        peers = {"initial_peers": self.peers, "threads": 1}
        prompts = {"tokens": self.arguments.interfering_tokens, "seconds": seconds, **peers}
        decode = {"alone_s": seconds / 2, "beside_s": seconds, **peers}
        say("interference")
        with (
            workers("scripts.lab.bench.clients:long_prompts_when_told", [prompts]) as (sender,),
            workers("scripts.lab.bench.clients:decode_alone_and_beside", [decode]) as (decoder,),
        ):
            sender.wait_ready()
            decoder.wait_ready()
            before = self._node_statistics()
            sender.order()
            decoder.order()
            found, sent = decoder.result(), sender.result()
            after = self._node_statistics()
        return found | {
            "prompt_tokens": self.arguments.interfering_tokens,
            "prompts": sent["prompts"],
            **interference_costs(found, seconds, before, after),
        }

    def _node_statistics(self) -> list[dict[str, Any]]:
        return [node.statistics() for node in self.swarm.nodes] if self.swarm else []

    def engine(self) -> list[dict[str, Any]]:
        quick = self.arguments.quick
        found = []
        for threads in self.local_threads:
            say(f"engine: {threads} thread{'s' * (threads > 1)}")
            found.append(
                run_in_process(
                    "scripts.lab.bench.engine:engine_alone",
                    threads=threads,
                    batches=[1, 8, 16] if quick else [1, 2, 4, 8, 16],
                    prefill_tokens=256 if quick else 512,
                    seconds=0.3 if quick else 0.7,
                    repeat=3,
                )
            )
        return found

    def whole(self) -> dict[str, Any]:
        contenders = {"swarm-node": ("ours", sys.executable)}
        if installed("llama_cpp", self.llama_python):
            contenders["llama.cpp"] = ("llama_cpp", self.llama_python)
        found: dict[str, Any] = {}
        for threads in self.local_threads:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
            for _ in range(self.repeat):  # in turn, so that each sees what else the machine does
                for name, (function, python) in contenders.items():
                    say(f"whole: {name}, {threads} thread{'s' * (threads > 1)}")
                    runs[name].append(
                        run_in_process(
                            f"scripts.lab.bench.whole:{function}",
                            python=python,
                            path=str(self.arguments.file.resolve()),
                            threads=threads,
                            new_tokens=self.new_tokens,
                        )
                    )
            for name, figures in runs.items():
                found[f"{name}, {threads} thread{'s' * (threads > 1)}"] = medians(figures)
        return {"file": self.arguments.file.name, "contenders": found}

    def experts(self) -> list[dict[str, Any]]:
        say("experts")
        return [
            run_in_process(
                "scripts.lab.bench.experts:experts_alone",
                threads=threads,
                batches=[1, 8] if self.arguments.quick else [1, 2, 4, 8, 16],
                seconds=1 if self.arguments.quick else 4,
            )
            for threads in self.local_threads
        ]

    def kernels(self) -> list[dict[str, Any]]:
        contenders = {"this": ("kernels:ours", sys.executable)}
        contenders |= {python: ("kernels:ours", python) for python in self.arguments.against}
        if installed("llama_cpp", self.llama_python):
            contenders["llama.cpp"] = ("ggml:products", self.llama_python)
        found = []
        for threads in self.local_threads:
            best: dict[str, dict[str, dict[str, float]]] = {name: {} for name in contenders}
            for _ in range(self.repeat):  # in turn, so that each sees what else the machine does
                for name, (function, python) in contenders.items():
                    say(f"kernels: {name}, {threads} thread{'s' * (threads > 1)}")
                    run = run_in_process(
                        f"scripts.lab.bench.{function}",
                        python=python,
                        threads=threads,
                        qtypes=[*QTYPES, "stack"],
                        seconds=0.3 if self.arguments.quick else 1,
                    )
                    for qtype, figures in run.items():
                        before = best[name].setdefault(qtype, figures)
                        if figures["product_us"] < before["product_us"]:
                            best[name][qtype] = figures
            found.append({"threads": threads, "contenders": best})
        return found

    def prefix(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        answers = {}
        for name, prefix_cache in (("without", False), ("with", True)):
            say(f"prefix: {name} cache")
            runs = self.swarm_process(
                "second_turns", tokens=1000, repeat=self.repeat, prefix_cache=prefix_cache
            )
            answers[name] = [run.pop("answer") for run in runs]
            found[name] = medians(runs)
        ratio = found["without"]["second_turn_s"] / found["with"]["second_turn_s"]
        return found | {"ratio": ratio, "same_answers": answers["with"] == answers["without"]}

    def pipeline(self) -> dict[str, Any]:
        say("pipeline")
        return pipeline(self.arguments.pipelined_tokens, self.repeat)

    def memory(self) -> dict[str, Any]:
        say("memory")
        return memory(self.arguments.nodes, self.serve_options)

    def start(self) -> dict[str, Any]:
        say("start: what people wait for, and what idle processes weigh")
        arguments = self.arguments
        return starts(arguments.nodes, self.repeat, arguments.against, self.serve_options)

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        parts: dict[str, Callable[[], Any]] = {
            "one-stream": self.one_stream,
            "whole": self.whole,
            "streams": self.streams,
            "interference": self.interference,
            "engine": self.engine,
            "experts": self.experts,
            "kernels": self.kernels,
            "prefix": self.prefix,
            "pipeline": self.pipeline,
            "memory": self.memory,
            "start": self.start,
        }
        chosen = [part for part in PARTS if part in self.arguments.parts]
        found: dict[str, Any] = dict.fromkeys(chosen)
        for part in chosen:  # those without a swarm beside none
            if part not in SWARM_PARTS:
                found[part] = parts[part]()
        weights: list[str] = []
        if SWARM_PARTS & set(chosen):
            with LocalSwarm(MODEL, self.spans, serve_options=self.serve_options, overrides={}) as swarm:
                self.swarm, self.peers = swarm, swarm.initial_peers
                weights = [node.events[-1]["weights"] for node in swarm.nodes]
                for part in chosen:
                    if part in SWARM_PARTS:
                        found[part] = parts[part]()
        if found.get("streams") and found.get("engine"):
            add_shares(found["streams"]["swarm"], found["engine"])
        return {"conditions": self._conditions(weights, time.perf_counter() - began), "parts": found}

    def _conditions(self, weights: list[str], seconds: float) -> dict[str, Any]:
        packages = ("swarm-node", "torch", "transformers", "llama-cpp-python")
        return {
            "model": MODEL.name,
            "nodes": self.arguments.nodes,
            "node_threads": self.node_threads,
            "client_threads": self.client_threads,
            "cores": self.cores,
            "machine": f"{platform.machine()} {processor()}".strip(),
            "weights": "; ".join(sorted(set(weights))),
            "wire_codec": self.arguments.wire_codec,
            "new_tokens": self.new_tokens,
            "repeat": self.repeat,
            "versions": {name: found for name in packages if (found := _version(name))},
            "python": platform.python_version(),
            "seconds": round(seconds, 1),
        }


def add_shares(streams: dict[str, dict[str, Any]], engine: list[dict[str, Any]]) -> None:
    """``of_engine``: what so many streams got, over what the engine alone computes of them in one batch (of
    16 at most), with the number of threads that is best."""
    alone: dict[int, float] = {}
    for each in (each for run in engine for each in run["batches"]):
        alone[each["batch"]] = max(each["tokens_per_s"], alone.get(each["batch"], 0.0))
    for count, figures in streams.items():
        batch = min(int(count), max(alone))
        if batch in alone and "aggregate_tokens_per_s" in figures:
            figures["of_engine"] = figures["aggregate_tokens_per_s"] / alone[batch]


def interference_costs(
    found: dict[str, Any], seconds: float, before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> dict[str, Any]:
    """What the other's prompts cost: how much longer a hop computed a decoding step on the average, and at
    most how much later a token may come.

    At each hop it may wait for a slice of prefill; on a CPU it is not computed together with one. The nodes'
    own counts say how many rows a batch had in those ``seconds``, and how many were prefill.
    """
    from swarm_node.node.engine.engine import EngineSettings

    slice_ms = EngineSettings().prefill_target_ms

    alone, beside = found["alone"], found["beside"]
    growth = [
        max(0.0, there["compute_ms"] - here["compute_ms"])
        for here, there in zip(alone["hops"], beside["hops"], strict=True)
    ]
    batches = sum(node["engine"]["batches"] for node in after) - sum(
        node["engine"]["batches"] for node in before
    )
    tokens = sum(node["engine"]["tokens"] for node in after) - sum(
        node["engine"]["tokens"] for node in before
    )
    return {
        "hops": len(growth),
        "slice_target_ms": slice_ms,
        "expected_growth_ms": len(growth) * slice_ms,
        "extra_compute_ms": sum(growth) / len(growth),
        "rows_per_batch": tokens / max(1, batches),
        "prefill_tokens_per_s": max(0.0, tokens / len(growth) - beside["tokens"]) / seconds,
    }


def installed(module: str, python: str) -> bool:
    if python == sys.executable:
        found = importlib.util.find_spec(module) is not None
    else:
        found = subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode == 0
    if not found:
        console.print(f"{module} is not installed: left out")
    return found


def processor() -> str:
    """The processor's own name, where the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
