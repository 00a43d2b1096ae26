"""One run of ``scripts/wan_lab spec``: a swarm of three hops in a laboratory, and a client that is asked."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ...command_line import say
from ...local_swarm import split_evenly
from ...processes.worker import Worker, workers
from ...prompts import BLOCKS, MODEL
from ..bench import HIDDEN, HOPS, SERVE
from ..figures import figures
from ..network import WanLab
from ..swarm import CLIENT, WanSwarm
from .bound import line_s
from .cases import LLAMA, Case, cases
from .figures import Run, case_figures, harmless_figures, problems, stages
from .llama import llama_beside
from .others import others_beside
from .prompts import Asked, hundred

WIDE_HIDDEN = 4096
"""Values in a row of an 8B model: ours are narrower, so the part "rows" narrows the lines as much."""
LEAST = 0.97
"""Times plain decoding below which no prompt should be."""
PROMPT_TOKENS = 64
PROMPT_RATE = 1e8
"""Of each machine while they are answered, in bit/s."""
ANSWER_S = 600.0


class SpecBench:
    """``arguments``: as ``scripts/wan_lab spec`` parses them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.cores = os.cpu_count() or 1

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        found: dict[str, Any] = {"results": [], "links": []}
        parts = set(self.arguments.parts)
        if parts - {LLAMA}:
            self._swarm(found)
        if LLAMA in parts and self.arguments.llama_python:
            found["llama_cpp"] = llama_beside(self.arguments, self._copies())
        checked = list(found["results"])
        if "harmless" in found:
            checked.append({"name": "a hundred prompts", **found["harmless"]})
        return {"conditions": self._conditions(began), **found, "problems": problems(checked)}

    def _swarm(self, found: dict[str, Any]) -> None:
        with ExitStack() as stack:
            lab = stack.enter_context(WanLab())
            say("a swarm of three hops")
            swarm = stack.enter_context(WanSwarm(lab, MODEL, split_evenly(BLOCKS, HOPS), serve_options=SERVE))
            client = stack.enter_context(_client(swarm, self.arguments.wire_codec))
            self._answer(client, _warm_up())
            for name, rate in self.arguments.rates:
                self._condition(swarm, client, name, rate, found)
            if "harmless" in self.arguments.parts:
                found["harmless"] = self._harmless(lab, client)
            if "others" in self.arguments.parts:
                found["others"] = others_beside(swarm, self.arguments)

    def _conditions(self, began: float) -> dict[str, Any]:
        arguments = self.arguments
        return {
            "model": MODEL.name,
            "hops": HOPS,
            "node_threads": 1,
            "cores": self.cores,
            "machine": platform.machine(),
            "wire_codec": arguments.wire_codec,
            "rtt_ms": 1000 * arguments.rtt,
            "repeat": arguments.repeat,
            "quick": arguments.quick,
            "seconds": round(time.perf_counter() - began, 1),
        }

    def _copies(self) -> list[dict[str, Any]]:
        asked = cases(("copy", "replaced"), self._tokenizer(), quick=self.arguments.quick)
        return [{"name": case.name, "prompt": case.prompt, "forced": case.forced} for case in asked]

    # One rate.

    def _condition(
        self, swarm: WanSwarm, client: Worker, name: str, rate: float | None, found: dict[str, Any]
    ) -> None:
        """The cases with wide rows at the last rate only; quick ones at the first one else."""
        arguments = self.arguments
        asked = cases(arguments.parts, self._tokenizer(), quick=arguments.quick)
        usual = [case for case in asked if case.part != "rows"]
        wide = [case for case in asked if case.part == "rows"]
        if usual and (not arguments.quick or (name, rate) == arguments.rates[0]):
            found["results"] += self._cases(swarm.lab, client, usual, name, rate)
            found["links"].append(figures(swarm.lab, CLIENT, "hop0", seconds=1.0) | {"rate": rate})
        if wide and rate is not None and (name, rate) == arguments.rates[-1]:
            narrowed = rate * HIDDEN / WIDE_HIDDEN
            found["results"] += self._cases(swarm.lab, client, wide, f"{name}, as for 4096 values", narrowed)

    def _cases(
        self, lab: WanLab, client: Worker, asked: Sequence[Case], name: str, rate: float | None
    ) -> list[dict[str, Any]]:
        lab.set_all(rtt_s=self.arguments.rtt)
        lab.set_every_machine(up=rate, down=rate)
        self._answer(client, _warm_up())
        plain: dict[str, list[Run]] = {case.name: [] for case in asked}
        runs: dict[str, dict[str, list[Run]]] = {
            case.name: {arm.name: [] for arm in case.arms} for case in asked
        }
        for number in range(self.arguments.repeat):
            for case in asked:
                say(f"{name}, round {number + 1}: {case.name}, plainly")
                plain[case.name].append(self._answer(client, case.order(None, None)))
                known = plain[case.name][0]["token_ids"]
                for arm in case.arms[:: -1 if number % 2 else 1]:
                    say(f"{name}, round {number + 1}: {case.name}, {arm.name}")
                    runs[case.name][arm.name].append(self._answer(client, case.order(arm, known)))
        everything = [run for each in runs.values() for arm in each.values() for run in arm]
        everything += [run for each in plain.values() for run in each]
        row_s = stages(everything, line_s(self._row_bytes(), rate), self.cores).row_s
        where = {"rate": rate, "rate_name": name}
        return [case_figures(case, plain[case.name], runs[case.name], row_s) | where for case in asked]

    # A hundred prompts.

    def _harmless(self, lab: WanLab, client: Worker) -> dict[str, Any]:
        """Each prompt plainly, speculating, and plainly again; what came out below LEAST twice more."""
        lab.set_all(rtt_s=self.arguments.prompt_rtt)
        lab.set_every_machine(up=PROMPT_RATE, down=PROMPT_RATE)
        self._answer(client, _warm_up())
        asked = hundred()[: 10 if self.arguments.quick else None]
        pairs = []
        for number, each in enumerate(asked):
            say(f"prompt {number + 1} of {len(asked)}: {each.name}")
            pairs.append({"kind": each.kind, "name": each.name, "rounds": [self._round(client, each)]})
        once = harmless_figures(pairs, LEAST)
        for pair, each, told in zip(pairs, asked, once["each"], strict=True):
            if told["times"] < LEAST:
                say(f"again: {each.name}, {told['times']:.2f} times plain decoding")
                pair["rounds"] += [self._round(client, each) for _ in range(2)]
        return {**harmless_figures(pairs, LEAST), "rtt_ms": 1000 * self.arguments.prompt_rtt}

    def _round(self, client: Worker, each: Asked) -> list[Run]:
        options = {"max_new_tokens": PROMPT_TOKENS, "ignore_eos": True, **each.options}
        orders = [{"options": {**options, "speculate": how}} for how in ("off", "auto", "off")]
        return [
            self._answer(client, {"prompt": each.messages, "schema": each.schema, **order})
            for order in orders
        ]

    # The client.

    def _answer(self, client: Worker, order: dict[str, Any]) -> Run:
        client.order(**order)
        return client.wait_for("answered", ANSWER_S)

    def _row_bytes(self) -> int:
        from swarm_node.swarm.codecs.kinds import kind_row_bytes

        return kind_row_bytes(self.arguments.wire_codec, HIDDEN)

    def _tokenizer(self) -> Any:
        from swarm_node.shards.checkpoint.opening import open_checkpoint

        with open_checkpoint(str(MODEL)) as checkpoint:
            return checkpoint.tokenizer()


def _warm_up() -> dict[str, Any]:
    """Lets the streams find out how fast the links are, and the client what its hops take."""
    return {"prompt": "Say hello to everybody.", "options": {"max_new_tokens": 8, "ignore_eos": True}}


@contextmanager
def _client(swarm: WanSwarm, wire_codec: str) -> Iterator[Worker]:
    options = {"initial_peers": swarm.initial_peers, "threads": 1, "wire_codec": wire_codec}
    function = "scripts.lab.wan_lab.spec.client:answer_orders"
    with ExitStack() as stack:
        with swarm.lab.inside(CLIENT):
            (client,) = stack.enter_context(workers(function, [options]))
        client.wait_ready()
        yield client
