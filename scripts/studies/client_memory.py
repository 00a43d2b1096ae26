"""Prints the table of docs/internals/client-memory.md: a client's memory per model, from shapes alone."""

from __future__ import annotations

from swarm_node.shards.models.client_memory import HeadShape, client_memory

from .. import ROOT
from ..lab.command_line import script_parser

DOCUMENT = ROOT / "docs/internals/client-memory.md"

MODELS = {
    "SmolLM2-135M": HeadShape(49152, 576, tied=True),
    "SmolLM2-1.7B": HeadShape(49152, 2048, tied=True),
    "Llama-3.2-1B": HeadShape(128256, 2048, tied=True),
    "Llama-3.2-3B": HeadShape(128256, 3072, tied=True),
    "Llama-3.1-8B": HeadShape(128256, 4096),
    "Llama-3.1-70B": HeadShape(128256, 8192),
    "Llama-3.1-405B": HeadShape(128256, 16384),
    "Mistral-7B-v0.3": HeadShape(32768, 4096),
    "Mistral-Small-24B": HeadShape(131072, 5120),
    "Mixtral-8x22B": HeadShape(32768, 6144),
    "Qwen2.5-0.5B": HeadShape(151936, 896, tied=True),
    "Qwen2.5-7B": HeadShape(152064, 3584),
    "Qwen2.5-72B": HeadShape(152064, 8192),
    "Qwen3-32B": HeadShape(151936, 5120),
}
"""Vocabulary and hidden size of their config.json."""
MODES = ("auto", "none")


def table() -> str:
    """Markdown."""
    lines = [
        "| model | vocabulary × hidden | head, `auto` (int8) | head, `--quantize none` (bf16) "
        "| tokenizer | on disk, read where needed | the process, `auto` |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, shape in MODELS.items():
        auto, none = (client_memory(shape, quantize=mode) for mode in MODES)
        tied = ", tied" if shape.tied else ""
        sizes = (auto.weights, none.weights, auto.tokenizer, auto.in_file, auto.total)
        cells = [name, f"{shape.vocab_size} × {shape.hidden_size}{tied}", *map(_size, sizes)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def main() -> int:
    script_parser("study client_memory", __doc__).parse_args()
    print(table())
    return 0
