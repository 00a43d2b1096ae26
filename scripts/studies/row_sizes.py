"""How large a model's rows are between its blocks, and that none is taken for a lie."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from swarm_node.client.hops.row_watch import LEAST_GROWTH, MOST_GROWTH, RowWatch, usual_embedding_rms
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.boundaries import Boundaries
from swarm_node.swarm.codecs.kinds import STATELESS
from swarm_node.swarm.errors import RemoteProtocolError, SwarmError
from swarm_node.swarm.types import Span

from .. import ROOT
from ..lab.command_line import script_parser
from ..lab.prompts import MODEL
from ..lab.quality.measure import REFERENCE, Cache, LocalModel

DOCS = ROOT / "docs"
REPEATED = ("the " * 300, "\n" * 300, "0 " * 300, "a b " * 150)
"""Texts that repeat themselves: their rows are the most alike."""
DESCRIPTION = """\
Computes texts in float32 and shows, for each block, the root mean square of the rows behind it in
those of the model's embeddings: the smallest, the largest of first tokens, the largest of others.
Every row is then looked at as a client would that carries it between hops of one block, and between
the whole model and itself. Exit code 1 if one is taken for a row that no model computes.
"""


def main() -> int:
    parser = script_parser("study row_sizes", DESCRIPTION)
    parser.add_argument("--model", default=str(MODEL), help="a GGUF file or a folder (default: the demo's)")
    parser.add_argument("--text", type=Path, help="text file, UTF-8 (default: this project's docs)")
    parser.add_argument("--tokens", type=int, default=4096, help="of the text (default: %(default)s)")
    parser.add_argument("--window", type=int, default=256, help="tokens seen at once (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    texts = [options.text] if options.text else sorted(DOCS.rglob("*.md"))
    try:
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in texts)
        report = measure(options.model, text, options.tokens, options.window)
    except (SwarmError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 1 if report["alarms"] else 0


def measure(model: str, text: str, tokens: int, window: int) -> dict[str, Any]:
    """``blocks``: [smallest, largest first, largest other] for each, in embeddings. Raises SwarmError."""
    with open_checkpoint(model, client=True) as checkpoint, torch.inference_mode():
        whole = LocalModel(checkpoint, REFERENCE)
        usual = usual_embedding_rms(whole.client.embed, checkpoint.config.vocab_size)
        encoded = checkpoint.tokenizer().encode
        ids = encoded(text[: 8 * tokens])[:tokens]
        windows = [ids[start : start + window] for start in range(0, len(ids), window)]
        windows += [encoded(each)[:window] for each in REPEATED if encoded(each)]
        sizes = [[float("inf"), 0.0, 0.0] for _ in range(whole.n_blocks)]
        alarms: list[str] = []
        for each in windows:
            cache = Cache(whole.blocks, len(each), "float32")
            began = x = torch.from_numpy(whole.client.embed(each))
            for block in range(whole.n_blocks):
                came, x = x, cache.through(x, 0, block, block + 1)
                rms = x.float().square().mean(dim=1).sqrt() / usual
                smallest, first, other = sizes[block]
                sizes[block] = [
                    min(smallest, float(rms.min())),
                    max(first, float(rms[0])),
                    max(other, *rms[1:].tolist()),
                ]
                alarms += _alarms(came, x, 1, block == 0, usual)
            alarms += _alarms(began, x, whole.n_blocks, True, usual)
        return {
            "model": str(checkpoint.ref),
            "tokens": sum(map(len, windows)),
            "embedding_rms": usual,
            "bounds": [LEAST_GROWTH, MOST_GROWTH],
            "blocks": sizes,
            "alarms": alarms,
        }


def _alarms(came: torch.Tensor, went: torch.Tensor, blocks: int, own_input: bool, usual: float) -> list[str]:
    """What is said of rows (tokens, hidden) that are decoded one by one, and of all of them at once."""
    found = []
    for codec in STATELESS.values():
        sent, got = codec.encode(came.float().numpy()), codec.encode(went.float().numpy())
        one, size = len(sent) // len(came), len(got) // len(went)
        for step in (1, len(came)):
            watch = RowWatch(
                Boundaries.alike(blocks, came.shape[1]),
                Span(0, blocks),
                own_input=own_input,
                embedding_rms=usual,
            )
            try:
                for at in range(0, len(came), step):
                    these = memoryview(sent)[at * one : (at + step) * one]
                    rows = memoryview(got)[at * size : (at + step) * size]
                    watch.check("the model", codec, these, step, codec, rows, at)
            except RemoteProtocolError as alarm:
                found.append(alarm.message)
    return found


def show(report: dict[str, Any]) -> None:
    usual = report["embedding_rms"]
    print(f"Model {report['model']}, {report['tokens']} tokens; a usual embedding has an rms of {usual:.3g}.")
    print("\n| behind block | smallest | largest first | largest other |\n|---|---|---|---|")
    for block, sizes in enumerate(report["blocks"]):
        print(f"| {block} | " + " | ".join(f"{size:.3g}" for size in sizes) + " |")
    print(f"\nTaken for a lie: {len(report['alarms'])} rows.", *report["alarms"], sep="\n  ")
