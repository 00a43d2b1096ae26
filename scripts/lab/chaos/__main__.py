"""A swarm whose nodes are killed, frozen, cut off and replaced by hostile ones, while clients stream answers.

Two replicas of each span, real processes, real p2pd, 127.0.0.1. Faults come on a seeded schedule, at nodes
that are in use; at least one replica of each span is left without any. Every answer must have the tokens of
the undisturbed one, and when all is over nothing may be left: no session, page, process or socket.

  scripts/chaos                                     ten minutes of every kind of fault, SmolLM2 in float32
  scripts/chaos --seconds 60 --seed 7 --json -      shorter, figures for machines on standard output
  scripts/chaos --mode int4                         weights in four bits, int8 between the machines
  scripts/chaos --mode deterministic                the same with --deterministic on every node
  scripts/chaos --streams daemon                    all streams through the nodes' p2pds
  scripts/chaos --faults frozen,SIGTERM             only these kinds
  scripts/chaos --kills 1000                        only kill -9, as fast as nodes come back, on a tiny model
  scripts/chaos --kills 300 --model tiny-hybrid     the same, where every other block keeps a state
  scripts/chaos --kills 300 --draft                 the same, with a draft model that is often wrong
  scripts/chaos --kills 300 --ahead                 the same, with 64 guesses under way, many of them wrong

Exit code 0: nothing was lost; 1: something was, or something is left; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from ..command_line import add_json, console, count, positive, run_and_report, script_parser, without_problems
from ..local_swarm import LocalSwarm, split_evenly
from ..processes.child import ProcessFailedError
from ..processes.event_process import stop_all
from ..processes.fork_server import ForkServer
from ..prompts import BLOCKS, MODEL
from ..tiny_model import BLOCKS as TINY_BLOCKS
from ..tiny_model import write_tiny_hybrid, write_tiny_model
from ..wan_lab.network import WanLab, why_not_here
from .clients import ChaosClients
from .nodes import ChaosNodes
from .places import Places
from .remains import MARK, descriptors, remains, what_nodes_hold
from .report import figures, problems_of, tables
from .schedule import KILL, KINDS, Planned, chosen, schedule
from .watch import Watch

TINY = {"tiny": write_tiny_model, "tiny-hybrid": write_tiny_hybrid}
WRONG = 0.03
"""How wrong the weights of a draft model are: see ``write_tiny_model``."""
PAUSE_S = (0.3, 1.5)
"""Between two faults, shortest and longest."""
KILL_PAUSE_S = (0.0, 0.25)
POLL_S = 0.004
READER_PAUSE_S = 0.02
"""Between two tokens of a tiny model, which would otherwise take all of the machine."""
POSTPONE_S = 5.0
"""A fault waits at most this many seconds for a node that is in use. Then it takes one that is not."""
STUCK_S = 90.0
"""A run without a possible fault for this many seconds ends: there is nothing to disturb any more."""
SETTLE_S = 60.0
KV_TOKENS = 8192
DRAIN_S = 0.5
"""Less than an answer takes: running ones must be handed over."""
PROGRESS_S = 30.0
"""Between two words to people who wait."""


class Chaos:
    """One run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._kills: int | None = arguments.kills
        self._tiny = arguments.model in TINY
        self._watch = Watch(on_note=self._tell if arguments.verbose else lambda note: None)
        self._aimed = 0
        self._began = self._started = self._told = time.monotonic()
        self._seconds = 0.0  # with faults

    def run(self) -> dict[str, Any]:
        arguments = self._arguments
        with contextlib.ExitStack() as exit_:
            folder = Path(exit_.enter_context(tempfile.TemporaryDirectory(prefix="swarm-chaos-")))
            sockets = folder / "s"
            sockets.mkdir()
            environment = {"OMP_NUM_THREADS": "1", "TMPDIR": str(sockets), MARK: folder.name}
            left = exit_.enter_context(remains(folder.name))
            model = str(TINY[arguments.model](folder) if self._tiny else Path(arguments.model))
            drafts = None
            if arguments.draft:
                (draft_folder := folder / "draft").mkdir()
                drafts = str(TINY[arguments.model](draft_folder, wrong=WRONG))
            spans = split_evenly(TINY_BLOCKS if self._tiny else BLOCKS, arguments.spans)
            fork_server = exit_.enter_context(ForkServer(environment))
            places = Places(exit_.enter_context(WanLab()) if arguments.lab else None)
            with places.inside("bootstrap"):
                swarm = exit_.enter_context(
                    LocalSwarm(
                        model,
                        [],
                        serve_options=self._serve_options(),
                        environment=environment,
                        overrides={},
                        launch=fork_server.launch,
                        bootstrap_host=places.host("bootstrap"),
                    )
                )
            clients = exit_.enter_context(
                ChaosClients(
                    streams=self._streams(),
                    launch=fork_server.launch,
                    places=places,
                    kv_filler=not self._kills,
                    model=model,
                    initial_peers=swarm.initial_peers,
                    prompts=6,
                    new_tokens=arguments.new_tokens,
                    draft=drafts,
                    ahead=arguments.ahead,
                    pause_s=READER_PAUSE_S if self._tiny else 0.0,
                    exact=arguments.mode == "float32",
                )
            )
            # While the clients start, which wait for them.
            nodes = ChaosNodes(swarm, spans * arguments.replicas, places, clients.fill)
            self._phase("nodes are online")
            clients.wait_ready()
            self._phase("clients are ready")
            expected = clients.undisturbed()
            held_before = descriptors(swarm.nodes)
            clients.go(expected)
            problems = self._disturb_and_settle(swarm, nodes, clients, held_before)
            for node, code in zip(swarm.nodes, stop_all(swarm.nodes), strict=True):
                if code:
                    problems.append(f"a node ended with exit code {code}")
                nodes.take_logs(node)
            problems = problems_of(self._watch) + nodes.problems + problems
        self._phase("nothing runs any more")
        report = figures(self._watch, self._seconds)
        return {
            "seed": arguments.seed,
            "mode": f"{arguments.model if self._tiny else Path(arguments.model).name}, {arguments.mode}"
            + (", drafts" if arguments.draft else "")
            + (", far ahead" if arguments.ahead else ""),
            "streams": arguments.streams,
            "replicas": arguments.replicas,
            "spans": arguments.spans,
            "clients": arguments.clients,
            "restarts": nodes.restarts,
            "in_a_running_generation": self._aimed,
            **report,
            "problems": problems + left,
            "timeline": self._watch.timeline,
        }

    def _phase(self, what: str) -> None:
        if self._arguments.verbose:
            console.print(f"[dim]{time.monotonic() - self._started:8.3f}  since the start: {what}[/]")

    def _progress(self, nodes: ChaosNodes) -> None:
        now, watch = time.monotonic(), self._watch
        if now - self._told < PROGRESS_S:
            return
        self._told = now
        wrong = sum(watch.wrong.values()) + len(watch.failures) + len(watch.false_bans) + len(nodes.problems)
        console.print(
            f"[dim]{now - self._began:5.0f} s  {len(watch.faults)} faults, {watch.generations} answers of "
            f"{watch.tokens} tokens, {len(watch.repairs)} repairs, {wrong} problems[/]"
        )

    def _tell(self, note: dict[str, Any]) -> None:
        told = ", ".join(f"{name} {value}" for name, value in note.items() if name not in ("at", "what"))
        console.print(f"[dim]{note['at'] - self._began:8.3f}  {note['what']}  {escape(told)}[/]")

    def _streams(self) -> list[int]:
        """Of each client process. Two are enough to see that a client's fault stays its own; each costs
        memory and time, which killing needs for restarts."""
        clients = self._arguments.clients
        return [clients - clients // 2, clients // 2] if self._kills and clients > 1 else [1] * clients

    def _serve_options(self) -> list[str]:
        options = ["--threads", "1", "--kv-cache-tokens", str(KV_TOKENS), "--drain-seconds", str(DRAIN_S)]
        if self._arguments.streams == "daemon":
            options.append("--no-direct")
        if self._arguments.mode == "float32":
            return [*options, "--quantize", "none", "--dtype", "float32"]
        deterministic = ["--deterministic"] if self._arguments.mode == "deterministic" else []
        return [*options, "--quantize", "int4", *deterministic]

    def _disturb_and_settle(
        self, swarm: LocalSwarm, nodes: ChaosNodes, clients: ChaosClients, held_before: dict[str, int]
    ) -> list[str]:
        """What was wrong. Where a process has failed that is asked, nothing follows: the report then says it,
        with all that was seen until then."""
        problems: list[str] = []
        self._began = time.monotonic()
        try:
            self._disturb(nodes, clients)
            self._seconds = time.monotonic() - self._began
            self._phase("no more faults")
            problems += self._calm_down(nodes, clients)
            self._phase("the swarm is whole")
            problems += clients.leave(self._watch)
            self._phase("clients have left")
            problems += what_nodes_hold(swarm.nodes, held_before)
            self._phase("nodes are idle")
        except ProcessFailedError as error:
            self._seconds = self._seconds or time.monotonic() - self._began
            problems.append(str(error)[:2000])
        return problems

    def _disturb(self, nodes: ChaosNodes, clients: ChaosClients) -> None:
        """Faults until the time is over, or until there were enough of them."""
        arguments = self._arguments
        kinds = (KILL,) if self._kills else arguments.faults
        plan = schedule(kinds, KILL_PAUSE_S if self._kills else PAUSE_S, arguments.seed)
        enough = self._kills or (arguments.rounds and arguments.rounds * len(kinds))
        for number, planned in enumerate(plan):
            if enough and number == enough:
                return
            due = time.monotonic() + planned.pause_s
            self._poll_until(due, nodes, clients)
            asked_at = time.monotonic()
            while not self._is_over():
                if self._try(planned, nodes, clients, asked_at):
                    break
                if time.monotonic() - asked_at > STUCK_S:
                    nodes.problems.append(f"nothing to disturb with {planned.kind.name} for {STUCK_S:.0f} s")
                    return
                self._poll_until(time.monotonic() + POLL_S, nodes, clients)
            if self._is_over():
                return

    def _is_over(self) -> bool:
        arguments = self._arguments
        return not arguments.rounds and not self._kills and time.monotonic() - self._began > arguments.seconds

    def _try(self, planned: Planned, nodes: ChaosNodes, clients: ChaosClients, asked_at: float) -> bool:
        """Make the fault if one can be made now."""
        watch = self._watch
        patient = time.monotonic() - asked_at < POSTPONE_S
        if watch.recovering() and (self._kills or patient):  # from the one before
            return False
        if planned.kind.name == "p2pd of a client":
            fault = clients.end_a_daemon(planned.pick)
            if fault is not None:
                self._aimed += any(key[0] == fault.client for keys in watch.in_use().values() for key in keys)
                watch.begin(fault)
            return fault is not None or not patient
        could = nodes.could_have(planned, replicas=1)
        in_use = watch.in_use()
        aimed = [slot for slot in could if slot.peer in in_use]
        if self._kills or aimed or patient:  # for one in a running answer
            could = aimed
        if not could:
            return False
        slot = could[int(planned.pick * len(could))]
        self._aimed += slot in aimed
        watch.begin(nodes.begin(planned, slot))
        return True

    def _poll_until(self, moment: float, nodes: ChaosNodes, clients: ChaosClients) -> None:
        while True:
            clients.poll(self._watch)
            nodes.poll()
            self._progress(nodes)
            left = moment - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(POLL_S, left))

    def _calm_down(self, nodes: ChaosNodes, clients: ChaosClients) -> list[str]:
        """Let every fault come to its end, and everybody get over it."""
        deadline = time.monotonic() + SETTLE_S
        while not nodes.all_up or self._watch.recovering():
            if time.monotonic() > deadline:
                return ["the swarm is not whole again"]
            self._poll_until(time.monotonic() + POLL_S, nodes, clients)
        return []


def show(report: dict[str, Any]) -> None:
    for each in tables(report):
        console.print(each)
    console.print(
        f"{report['in_a_running_generation']} of {report['faults_total']} faults hit a running answer; "
        f"{report['restarts']} nodes were restarted"
    )
    for problem in report["problems"]:
        console.print(f"[bold red]{escape(problem)}[/]")
    if not report["problems"]:
        console.print("[green]no token was lost, nothing is left behind[/]")


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("chaos", __doc__)
    parser.add_argument("--minutes", type=positive, default=10.0, help="default: %(default)s")
    parser.add_argument("--seconds", type=positive, help="instead of minutes")
    parser.add_argument("--rounds", type=count, metavar="N", help="every kind of fault N times, instead")
    parser.add_argument("--kills", type=count, metavar="N", help="N times kill -9, and nothing else")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (default: %(default)s)")
    parser.add_argument("--mode", choices=("float32", "int4", "deterministic"), default="float32")
    parser.add_argument(
        "--streams",
        choices=("direct", "daemon"),
        default="direct",
        help="from process to process (the default), or all through the nodes' p2pds",
    )
    parser.add_argument(
        "--model",
        help="a .gguf file, or random weights: tiny (default with --kills), or tiny-hybrid, of which every "
        "other block keeps a state",
    )
    parser.add_argument(
        "--draft", action="store_true", help="a tiny model's answers are drafted, and the drafts err"
    )
    parser.add_argument(
        "--ahead",
        action="store_true",
        help="answers are guessed 64 tokens ahead in steps of 8, and a quarter of the guesses is wrong",
    )
    parser.add_argument("--spans", type=count, default=2, help="default: %(default)s")
    parser.add_argument("--replicas", type=count, help="of each span (default: 2; with --kills 4)")
    parser.add_argument("--clients", type=count, default=4, help="streams (default: %(default)s)")
    parser.add_argument("--new-tokens", type=count, default=64, help="of an answer (default: %(default)s)")
    parser.add_argument(
        "--faults", type=_kinds, default=KINDS, help=f"of: {', '.join(kind.name for kind in KINDS)}"
    )
    parser.add_argument(
        "--lab",
        action="store_true",
        help="each process on a machine of its own, as in scripts/wan_lab (needs root): partition then cuts "
        "the wire; without it the node's p2pd is stopped, which direct streams do not notice",
    )
    parser.add_argument("--verbose", action="store_true", help="tell what happens, as it does")
    add_json(parser)
    parsed = parser.parse_args(words)
    parsed.seconds = parsed.seconds or parsed.minutes * 60
    parsed.model = parsed.model or ("tiny" if parsed.kills else str(MODEL))
    parsed.replicas = parsed.replicas or (4 if parsed.kills else 2)
    if parsed.draft and parsed.model not in TINY:
        parser.error(f"--draft is for --model {' or '.join(TINY)}")
    if parsed.lab and (reason := why_not_here()):
        parser.error(f"--lab: {reason}")
    if parsed.replicas < 2:
        parser.error("--replicas must be 2 or more: one of each span is left alone")
    return parsed


def _kinds(text: str) -> tuple[Any, ...]:
    try:
        return chosen(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_and_report(Chaos(arguments).run, show, arguments.json, is_good=without_problems)


if __name__ == "__main__":
    sys.exit(main())
