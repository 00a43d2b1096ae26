"""What the swarm does for one stream and for many, beside transformers and llama.cpp, in one run.

Every contender runs in a process of its own on this machine, several times over; the figures are medians, the
single runs are in the JSON. Parts:

  one-stream    decoding, prefill and where a token's time goes; transformers and llama.cpp on the same file
  streams       1 to 32 answers side by side: together, fairness, time between tokens; llama.cpp's batches
  interference  one decodes while another sends long prompts
  engine        the compute alone, batch 1 to 16, against the memory's bandwidth
  prefix        the second turn of a long chat, with and without the prefix cache
  pipeline      a prompt over two hops, in chunks and whole
  memory        a node's memory against its weights and KV cache

  scripts/bench                                 everything, as tables
  scripts/bench --parts streams,engine --json bench.json
  scripts/bench --quick                         fewer and shorter runs, without transformers
"""

from __future__ import annotations

import argparse
import sys

from ..numbers_given import count
from ..prompts import BLOCKS
from ..report import run_and_report
from .parts import PARTS, Bench
from .tables import console, print_report


def _parts(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := [part for part in parts if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(PARTS)}")
    return parts


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help="comma-separated; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, without transformers")
    parser.add_argument("--nodes", type=count, default=2, help="serving processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, help="of each node (default: the cores)")
    parser.add_argument("--client-threads", type=count, help="default: the cores")
    parser.add_argument("--new-tokens", type=count, help="of each answer (default: 64, quick 48)")
    parser.add_argument("--prefill-tokens", type=count, default=1024, help="default: %(default)s")
    parser.add_argument("--interfering-tokens", type=count, default=4096, help="default: %(default)s")
    parser.add_argument("--pipelined-tokens", type=count, default=2048, help="default: %(default)s")
    parser.add_argument("--repeat", type=count, help="runs of each (default: 3, quick 1)")
    parser.add_argument("--wire-codec", default="int8", help="of the one stream (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE (- is standard output)")
    arguments = parser.parse_args(words)
    if arguments.nodes > BLOCKS:
        parser.error(f"--nodes must be 1 to {BLOCKS}: the model has {BLOCKS} blocks")
    return arguments


def main() -> int:
    arguments = parse(sys.argv[1:])
    ended = run_and_report(Bench(arguments).run, print_report, arguments.json, console)
    return ended if isinstance(ended, int) else 0


if __name__ == "__main__":
    sys.exit(main())
