"""The wide-area benchmark: decode and prefill over three hops, chained and relayed, beside the bound."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..command_line import say
from ..local_swarm import split_evenly
from ..processes.worker import Worker, run_in_process, workers
from ..prompts import BLOCKS, MODEL
from .bound import Condition, decode_bound, prefill_bound, ways
from .controls import KINDS, Ring, ring
from .figures import figures
from .network import WanLab
from .swarm import CLIENT, WanSwarm

HOPS = 3
HIDDEN = 576
SERVE = ["--threads", "1", "--kv-cache-tokens", "16384"]
"""One thread a node: few cores carry all machines."""
COUNTED_TOKENS = 16
"""Tokens over which bytes on the links are counted."""
CONTROL_TRIPS = 64


class WanBench:
    """One run: its sizes, its laboratory and its swarm once they are up."""

    def __init__(self, arguments: argparse.Namespace, conditions: Sequence[Condition]) -> None:
        self.arguments = arguments
        self.conditions = conditions
        self.cores = os.cpu_count() or 1

    def run(self) -> dict[str, Any]:
        from ..bench.engine import CONTEXT  # imports torch

        began = time.perf_counter()
        context = self.arguments.context
        say("the model alone, one thread")
        alone = run_in_process(
            "scripts.lab.bench.engine:engine_alone",
            threads=1,
            batches=[1],
            prefill_tokens=max(context, CONTEXT),
            seconds=0.3,
            repeat=1,
        )
        prefill_compute_s = context / alone["prefill_tokens_per_s"]
        say("a swarm of three hops, and the controls")
        with ExitStack() as stack:
            lab = stack.enter_context(WanLab())
            swarm = stack.enter_context(WanSwarm(lab, MODEL, split_evenly(BLOCKS, HOPS), serve_options=SERVE))
            names = [CLIENT, *swarm.nodes]
            rings = {kind: stack.enter_context(ring(lab, names, kind)) for kind in KINDS}
            found = [self._condition(swarm, rings, each, prefill_compute_s) for each in self.conditions]
        return {
            "conditions": {
                "model": MODEL.name,
                "hops": HOPS,
                "node_threads": 1,
                "cores": self.cores,
                "machine": platform.machine(),
                "kernel": platform.release(),
                "congestion_control": congestion_control(),
                "wire_codec": self.arguments.wire_codec,
                "context": context,
                "new_tokens": self.arguments.new_tokens,
                "repeat": self.arguments.repeat,
                "seconds": round(time.perf_counter() - began, 1),
            },
            "prefill_compute_s": prefill_compute_s,
            "results": found,
        }

    def _condition(
        self, swarm: WanSwarm, rings: Mapping[str, Ring], condition: Condition, prefill_compute_s: float
    ) -> dict[str, Any]:
        lab = swarm.lab
        lab.set_all(rtt_s=condition.rtt_s)
        lab.set_every_machine(up=condition.rate, down=condition.rate)
        say(f"{condition.name}: the links themselves")
        links = figures(lab, CLIENT, "hop0", seconds=1.0) | {"rate": condition.rate}
        modes = {}
        for mode in self.arguments.modes:
            say(f"{condition.name}: {mode}")
            modes[mode] = self._mode(swarm, condition, mode == "chained", prefill_compute_s)
        say(f"{condition.name}: controls")
        short = next(iter(modes.values()))["decode"]["short"]
        controls = self._controls(rings, condition, short["middle"])
        return {
            "name": condition.name,
            "rate": condition.rate,
            "rtt_s": condition.rtt_s,
            "links": links,
            "modes": modes,
            "controls": controls,
        }

    def _controls(
        self, rings: Mapping[str, Ring], condition: Condition, run: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """The trips of a chained token without our code, every machine as busy as in ``run``."""
        busy_s = [run["local_s"], *run["compute_s"]]
        found = {}
        for kind, around in rings.items():
            measured = around.measure(busy_s, self._row_bytes(), CONTROL_TRIPS)
            bound = decode_bound(
                condition, chain=True, compute_s=[0.0] * HOPS, local_s=0.0, row_bytes=self._row_bytes()
            )
            bound_s = bound.seconds + measured["busy_s"]
            beyond_s = measured["seconds"] - bound_s
            found[kind] = {
                **measured,
                "bound_s": bound_s,
                "over_bound": measured["seconds"] / bound_s - 1,
                "beyond_s": beyond_s,
                "beyond_way_s": beyond_s / ways(HOPS, chain=True),
            }
        return found

    def _row_bytes(self) -> int:
        """Of one token's activations."""
        from swarm_node.swarm.codecs.kinds import kind_row_bytes

        return kind_row_bytes(self.arguments.wire_codec, HIDDEN)

    def _mode(
        self, swarm: WanSwarm, condition: Condition, chain: bool, prefill_compute_s: float
    ) -> dict[str, Any]:
        row_bytes = self._row_bytes()
        options = {
            "initial_peers": swarm.initial_peers,
            "threads": 1,
            "chain": chain,
            "wire_codec": self.arguments.wire_codec,
            "context": self.arguments.context,
            "new_tokens": self.arguments.new_tokens,
            "counted_tokens": COUNTED_TOKENS,
            "repeat": self.arguments.repeat,
        }
        swarm.lab.punctuality()
        with swarm.lab.inside(CLIENT), workers("scripts.lab.wan_lab.client:measure", [options]) as (client,):
            wire_bytes = _bytes_per_token(swarm.lab, client)
            runs = client.result()
        late = swarm.lab.punctuality()
        decode = {}
        for kind in ("short", "long"):
            middle = sorted(runs[kind], key=lambda run: run["decode_s"])[len(runs[kind]) // 2]
            bound = decode_bound(
                condition,
                chain=chain,
                compute_s=middle["compute_s"],
                local_s=middle["local_s"],
                row_bytes=row_bytes,
            )
            decode[kind] = {
                "tokens_per_s": 1 / middle["decode_s"],
                "seconds": middle["decode_s"],
                "bound": bound.as_dict(),
                "over_bound": middle["decode_s"] / bound.seconds - 1,
                **overheads(middle, bound.seconds),
                "middle": middle,
                "runs": runs[kind],
            }
        tokens = runs["long"][0]["prompt_tokens"]
        prefill_s = statistics.median(run["prefill_s"] for run in runs["long"])
        least_s = prefill_bound(
            condition,
            hops=HOPS,
            chain=chain,
            tokens=tokens,
            row_bytes=row_bytes,
            compute_s=min(
                prefill_compute_s * tokens / self.arguments.context,
                *(sum(run["prefill_compute_s"]) for run in runs["long"]),  # other work may have left since
            ),
            cores=self.cores,
        )
        return {
            "decode": decode,
            "prefill": {
                "tokens": tokens,
                "seconds": prefill_s,
                "tokens_per_s": tokens / prefill_s,
                "bound_s": least_s,
                "bound_tokens_per_s": tokens / least_s,
                "over_bound": prefill_s / least_s - 1,
                "hops_compute_s": [
                    statistics.median(times)
                    for times in zip(*(run["prefill_compute_s"] for run in runs["long"]), strict=True)
                ],
            },
            "bytes_per_token": {
                "ways": ways(HOPS, chain=chain),
                "activations": ways(HOPS, chain=chain) * row_bytes,
                "on_links": wire_bytes,
            },
            "paths": sorted({path for kind in runs.values() for run in kind for path in run["paths"]}),
            "repairs": sum(run["repairs"] for kind in runs.values() for run in kind),
            "forwarder_late_ms": 1000 * late.mean_late_s,
        }


def overheads(run: dict[str, Any], bound_s: float) -> dict[str, float]:
    """Where the seconds of a token beyond the bound went: waiting at hops, codecs, and all else
    (streams, event loops, the emulation's own lateness)."""
    queue_s, codec_s = sum(run["queue_s"]), sum(run["codec_s"])
    rest_s = run["decode_s"] - bound_s - queue_s - codec_s
    return {"queue_s": queue_s, "codec_s": codec_s, "rest_s": rest_s}


def _bytes_per_token(lab: WanLab, client: Worker) -> dict[str, float]:
    """Bytes of IP packets a decoded token, over all links between client and hops, and of the client's."""

    def snapshot() -> dict[tuple[str, str], int]:
        return {pair: count.bytes for pair, count in lab.all_traffic().items() if "bootstrap" not in pair}

    client.wait_ready()
    before = snapshot()
    client.order()
    client.wait_ready()
    after = snapshot()
    client.order()
    spent = {pair: (after[pair] - before[pair]) / COUNTED_TOKENS for pair in before}
    return {
        "all": sum(spent.values()),
        "client_up": sum(value for (a, _), value in spent.items() if a == CLIENT),
        "client_down": sum(value for (_, b), value in spent.items() if b == CLIENT),
    }


def congestion_control() -> str:
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return "unknown"
