"""How often the block that a model has behind its last guesses the token after the next one.

The model answers a prompt greedily in this process, and its first such block guesses beside it, each time
with the true tokens before it: what a draft of one token would gain.

scripts/study next_guesses MODEL --tokens 200
"""

from __future__ import annotations

import numpy as np

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model, load_next_part
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.shards.models.own_memory import OwnMemory
from swarm_node.swarm.types import Span

from ..lab.command_line import script_parser

PROMPT = "Write a short story about a lighthouse keeper who finds a letter."


def share(model: str, prompt: str, tokens: int, threads: int) -> float:
    """Of ``tokens`` greedy tokens behind ``prompt``, the part that was guessed one step before."""
    options = LoadOptions()
    with open_checkpoint(model) as checkpoint:
        ids = checkpoint.tokenizer().encode(prompt)
        client = load_client_model(checkpoint, options, threads=threads)
        part = load_next_part(checkpoint, client, options, threads=threads)
        blocks = load_backend(checkpoint, Span(0, checkpoint.config.n_blocks), options, threads=threads)
        whole = len(ids) + tokens
        memory, own = (OwnMemory(each, "float32", whole) for each in (blocks, part.blocks))
        fed, at, right = ids, 0, 0
        guess = None
        for _ in range(tokens):
            rows = blocks.forward(client.embed(fed), [memory.slice(at, len(fed))], memory.pool)
            token = int(client.logits(rows[-1:]).argmax())
            right += token == guess
            # The last row is followed by the new token, those before it by what was fed.
            following = np.array([*fed[1:], token])
            made = part.forward(client.final_norm(rows), following, [own.slice(at, len(fed))], own.pool)
            guess = int(part.logits(made[-1:]).argmax())
            at, fed = at + len(fed), [token]
    return right / max(1, tokens - 1)  # the first token had no guess


def main() -> int:
    parser = script_parser("study next_guesses", __doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    right = share(arguments.model, arguments.prompt, arguments.tokens, arguments.threads)
    print(f"{right:.1%} of the tokens were guessed")
    return 0
