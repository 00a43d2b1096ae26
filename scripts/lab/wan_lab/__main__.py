"""A wide-area network on this machine: every process in a network namespace of its own, joined by links with
latency, jitter, bandwidth, loss and partitions. Needs Linux and root.

  scripts/wan_lab bench               decode and prefill over three hops in the Petals paper's conditions
  scripts/wan_lab bench --quick       fewer tokens, one run of each
  scripts/wan_lab spec                speculation beside plain decoding: copies, drafts whose chances are
                                      known, novel texts, a hundred prompts, other users, llama.cpp
  scripts/wan_lab links               what the emulated links do, beside what was asked
  scripts/wan_lab demo                an answer over 50 ms links, the client cut off for 2 s in the middle
  scripts/wan_lab demo --schedule '2s all rtt=200ms; 4s cut hop1; 9s heal'
  scripts/wan_lab shell --machines a,b --rtt 80ms --rate 10mbit -- ping -c 3 10.77.0.2
                                      a command (or a shell) in the first of some machines

A schedule is a list of changes, separated by semicolons, each after a time since its begin:
  3s cut A[,B...] [C,...] | 6s heal [A,... [C,...]] | 8s link A B rtt=200ms jitter=5ms rate=10mbit loss=1%
  9s all rtt=50ms | 9s machine A up=10mbit down=none
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from ..command_line import (
    add_json,
    checked,
    console,
    count,
    end_by_exception,
    names_of,
    run_and_report,
    say,
    script_parser,
)
from ..local_swarm import split_evenly
from ..processes.child import ProcessFailedError
from ..prompts import BLOCKS, MODEL
from .bench import HOPS, SERVE, WanBench
from .bound import PETALS_CONDITIONS
from .figures import figures
from .kernel import LabUnavailableError
from .network import WanLab, why_not_here
from .schedule import following, parse_schedule
from .spec.command import add_options, measure
from .swarm import CLIENT, WanSwarm
from .tables import print_bench, print_links
from .units import chance, rate, seconds

MODES = ("chained", "relayed")
LINKS = (
    {"rtt_s": 0.001, "rate": None},
    {"rtt_s": 0.005, "rate": 1e9},
    {"rtt_s": 0.005, "rate": 1e8},
    {"rtt_s": 0.1, "rate": 1e8},
    {"rtt_s": 0.05, "rate": 1e7, "loss": 0.02},
    {"rtt_s": 0.05, "jitter_s": 0.005, "rate": 1e7},
)


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("wan_lab", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="decode and prefill beside the physical bound")
    names = tuple(str(number + 1) for number in range(len(PETALS_CONDITIONS)))
    listed = ", ".join(f"{n} {each.name}" for n, each in zip(names, PETALS_CONDITIONS, strict=True))
    bench.add_argument(
        "--conditions", type=names_of(names), default=list(names), help=f"{listed}; default: all"
    )
    bench.add_argument("--modes", type=names_of(MODES), default=list(MODES), help="default: chained,relayed")
    bench.add_argument("--context", type=count, default=2048, help="of long prompts (default: %(default)s)")
    bench.add_argument("--new-tokens", type=count, help="of each answer (default: 32, quick 24)")
    bench.add_argument("--repeat", type=count, help="runs of each (default: 3, quick 1)")
    bench.add_argument("--wire-codec", default="int8", help="default: %(default)s")
    bench.add_argument("--quick", action="store_true", help="fewer tokens and runs")
    add_json(bench)
    add_options(commands.add_parser("spec", help="speculation beside plain decoding, and beside the bound"))
    links = commands.add_parser("links", help="the emulation's own figures")
    add_json(links)
    shown = commands.add_parser("demo", help="a swarm over the network, something happens on the way")
    shown.add_argument("prompt", nargs="?", default="Explain how a sailing ship can move against the wind.")
    shown.add_argument("--max-new-tokens", type=count, default=48, help="default: %(default)s")
    shell = commands.add_parser("shell", help="a command in the first of some machines")
    shell.add_argument("--machines", default="a,b", help="names, separated by commas (default: %(default)s)")
    shell.add_argument("argv", nargs="*", help="after --; default: $SHELL")
    for command in (shown, shell):
        _add_links(command)
    shown.set_defaults(rtt=0.05, schedule=parse_schedule("3s cut client; 5s heal"))
    parsed = parser.parse_args(words)
    if parsed.command == "bench":
        parsed.new_tokens = parsed.new_tokens or (24 if parsed.quick else 32)
    if parsed.command in ("bench", "spec"):
        parsed.repeat = parsed.repeat or (1 if parsed.quick else 3)
    return parsed


def _add_links(command: argparse.ArgumentParser) -> None:
    command.add_argument("--rtt", type=checked(seconds), default=0.0, metavar="TIME", help="of every link")
    command.add_argument("--jitter", type=checked(seconds), default=0.0, metavar="TIME", help="each way, ±")
    command.add_argument("--rate", type=checked(rate), default=None, help="of each machine, each way")
    command.add_argument("--loss", type=checked(chance), default=0.0, help="each way, such as 1%%")
    command.add_argument(
        "--schedule", type=checked(parse_schedule), default=[], metavar="TEXT", help="see scripts/wan_lab -h"
    )


def lab_of(arguments: argparse.Namespace) -> WanLab:
    return WanLab(rtt_s=arguments.rtt, jitter_s=arguments.jitter, access=arguments.rate, loss=arguments.loss)


def links() -> dict[str, Any]:
    found = []
    with WanLab() as lab:
        lab.add("a")
        lab.add("b")
        for asked in LINKS:
            lab.set_all(**{"jitter_s": 0.0, "loss": 0.0, **asked})
            found.append(figures(lab, "a", "b"))
    return {"links": found}


def demo(arguments: argparse.Namespace) -> int:
    """An answer shown as it comes; the schedule begins with its first words. Returns an exit code."""
    with (
        lab_of(arguments) as lab,
        WanSwarm(lab, MODEL, split_evenly(BLOCKS, HOPS), serve_options=SERVE, on_event=say) as swarm,
    ):
        words = ["generate", "--model", str(MODEL), "--max-new-tokens", str(arguments.max_new_tokens)]
        words += [item for peer in swarm.initial_peers for item in ("--initial-peers", peer)]
        child = lab.popen(
            CLIENT,
            [sys.executable, "-m", "swarm_node.node.cli", *words, "--wait", "30", arguments.prompt],
            stdout=subprocess.PIPE,
        )
        text = os.read(child.stdout.fileno(), 4096)
        with following(lab, arguments.schedule, say):
            while text:
                sys.stdout.buffer.write(text)
                sys.stdout.flush()
                text = os.read(child.stdout.fileno(), 4096)
        return int(child.wait())


def shell(arguments: argparse.Namespace) -> int:
    """The command's exit code."""
    names = arguments.machines.split(",")
    with lab_of(arguments) as lab:
        for name in names:
            say(f"{name} is {lab.add(name)}")
        with following(lab, arguments.schedule, say):
            return int(lab.popen(names[0], arguments.argv or [os.environ.get("SHELL", "/bin/sh")]).wait())


def main() -> int:
    arguments = parse(sys.argv[1:])
    end_by_exception()
    try:
        needs_lab = not getattr(arguments, "from_json", None)
        if needs_lab and (reason := why_not_here()):
            raise LabUnavailableError(reason)
        match arguments.command:
            case "bench":
                conditions = [PETALS_CONDITIONS[int(name) - 1] for name in arguments.conditions]
                return run_and_report(WanBench(arguments, conditions).run, print_bench, arguments.json)
            case "spec":
                return measure(arguments)
            case "links":
                return run_and_report(links, print_links, arguments.json)
            case "demo":
                return demo(arguments)
            case _:
                return shell(arguments)
    except KeyboardInterrupt:
        return 130
    except (LabUnavailableError, ProcessFailedError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
