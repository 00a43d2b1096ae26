"""How often the block behind a model's last, which guesses the next tokens, is right.

The model answers a prompt greedily in this process, and its first such block guesses beside it, as a client's
does. A guess counts where those before it in its chain were right. ``--whole``: the block has also read the
prompt, whose rows no client gets.

scripts/study next_guesses MODEL --tokens 200 --depth 4
"""

from __future__ import annotations

import asyncio
from argparse import Namespace

from swarm_node.client.drafting.next_guesses import MOST_DEPTH, NextGuesses, NextModel
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model, load_next_part
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.types import Span

from ..lab.command_line import script_parser

PROMPT = "Write a short story about a lighthouse keeper who finds a letter."


async def judged(options: Namespace) -> list[tuple[int, int]]:
    """By depth: how many guesses were right, of those behind right ones."""
    load = LoadOptions()
    with open_checkpoint(options.model) as checkpoint:
        prompt = checkpoint.tokenizer().encode(options.prompt)
        client = load_client_model(checkpoint, load, threads=options.threads)
        part = load_next_part(checkpoint, client, load, threads=options.threads)
        blocks = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), load, threads=options.threads)
        memory = OwnMemory(blocks, "float32", len(prompt) + options.tokens)
        model = NextModel(part, client)
        source = model.begin((), len(prompt) + options.tokens)
        fed, at = prompt, 0
        chains: list[list[int]] = []
        answer: list[int] = []
        for _ in range(options.tokens):
            rows = blocks.forward(client.embed(fed), [memory.slice(at, len(fed))], memory.pool)
            token = int(client.logits(rows[-1:]).argmax())
            known = len(rows) if options.whole else 1
            source.came([*fed, token][-known:], rows[-known:])
            at, fed = at + len(fed), [token]
            answer.append(token)
            chains.append(await chain(source, options.depth))
        model.close()
    return by_depth(chains, answer, options.depth)


async def chain(source: NextGuesses, depth: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < depth and (guess := await source.guess(tokens)) is not None:
        tokens.append(guess.token)
    return tokens


def by_depth(chains: list[list[int]], answer: list[int], depth: int) -> list[tuple[int, int]]:
    """``chains``: what was guessed behind each token of ``answer``."""
    found = [[0, 0] for _ in range(depth)]
    for number, tokens in enumerate(chains, start=1):
        for count, (guess, token) in zip(found, zip(tokens, answer[number:], strict=False), strict=False):
            count[1] += 1
            if guess != token:
                break
            count[0] += 1
    return [(right, tried) for right, tried in found]


def main() -> int:
    parser = script_parser("study next_guesses", __doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--depth", type=int, choices=range(1, MOST_DEPTH + 1), default=4)
    parser.add_argument("--whole", action="store_true", help="the block reads the prompt, too")
    parser.add_argument("--threads", type=int, default=1)
    for depth, (right, tried) in enumerate(asyncio.run(judged(parser.parse_args())), start=1):
        share = f"{right / tried:.1%}" if tried else "none"
        print(f"guess {depth}: {share} of {tried} behind right ones")
    return 0
