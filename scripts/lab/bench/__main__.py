"""What the swarm does for one stream and for many, beside transformers and llama.cpp, in one run.

Every contender runs in a process of its own on this machine, several times over; the figures are medians, the
single runs are in the JSON. Parts:

  one-stream    decoding, prefill and where a token's time goes; transformers and llama.cpp on the same file
  whole         the compute of a whole model in one process, on any GGUF file, beside llama.cpp's
  streams       1 to 32 answers side by side: together, fairness, time between tokens; llama.cpp's batches
  interference  one decodes while another sends long prompts
  engine        the compute alone, batch 1 to 16, against the memory's bandwidth
  experts       one block's experts alone, batch 1 to 16, against the memory's bandwidth
  kernels       one row times a matrix of each type, against the memory's bandwidth, beside ggml's
  prefix        the second turn of a long chat, with and without the prefix cache
  pipeline      a prompt over two hops, in chunks and whole
  memory        a node's memory against its weights and KV cache
  start         from a command to its first output and to the shell; memory of idle processes

  scripts/bench                                 everything, as tables
  scripts/bench --parts streams,engine --json bench.json
  scripts/bench --quick                         fewer and shorter runs, without transformers
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..command_line import add_json, count, names_of, run_and_report, script_parser
from ..prompts import BLOCKS, MODEL
from .parts import PARTS, Bench
from .tables import print_report


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("bench", __doc__)
    parser.add_argument(
        "--parts", type=names_of(PARTS), default=list(PARTS), help="comma-separated; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs, without transformers")
    parser.add_argument("--nodes", type=count, default=2, help="serving processes (default: %(default)s)")
    parser.add_argument("--threads", type=count, help="of each node (default: as it chooses)")
    parser.add_argument("--client-threads", type=count, help="default: the cores")
    parser.add_argument("--new-tokens", type=count, help="of each answer (default: 64, quick 48)")
    parser.add_argument("--prefill-tokens", type=count, default=1024, help="default: %(default)s")
    parser.add_argument("--interfering-tokens", type=count, default=4096, help="default: %(default)s")
    parser.add_argument("--pipelined-tokens", type=count, default=2048, help="default: %(default)s")
    parser.add_argument("--repeat", type=count, help="runs of each (default: 3, quick 1)")
    parser.add_argument("--wire-codec", default="int8", help="of the one stream (default: %(default)s)")
    parser.add_argument(
        "--against",
        nargs="*",
        default=[],
        metavar="PYTHON",
        help="of one-stream, kernels and start: the interpreter of another checkout, measured beside this",
    )
    parser.add_argument(
        "--llama-python",
        metavar="PYTHON",
        help="the interpreter of an environment with llama-cpp-python and psutil (default: this one)",
    )
    parser.add_argument(
        "--file", type=Path, default=MODEL, help="of the part whole: a GGUF file (default: the bench's own)"
    )
    add_json(parser)
    arguments = parser.parse_args(words)
    if arguments.nodes > BLOCKS:
        parser.error(f"--nodes must be 1 to {BLOCKS}: the model has {BLOCKS} blocks")
    return arguments


def main() -> int:
    arguments = parse(sys.argv[1:])
    return run_and_report(Bench(arguments).run, print_report, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
