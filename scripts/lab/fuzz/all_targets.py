"""Every target, by name. Those of a kind are imported when one of them is run: some need torch."""

from __future__ import annotations

from importlib import import_module

from .target import Target

KINDS = {
    "targets_wire": ("frames", "delegated-frames", "piece-frames"),
    "targets_codecs": ("codecs",),
    "targets_streams": ("yamux", "multistream", "noise", "noise-payload", "direct"),
    "targets_records": ("records", "entries", "texts", "mdns"),
    "targets_files": (
        *("safetensors", "config", "tokenizer", "tokenizer-config", "gguf", "split-gguf", "manifest"),
        "index",
    ),
    "targets_families": (
        *("family-config", "family-gguf", "family-tensors", "family-gguf-tensors", "family-experts"),
        "family-oracle",
    ),
    "targets_quantized": ("family-quantized",),
    "targets_live": ("node", "client", "http"),
}
NAMES = tuple(name for names in KINDS.values() for name in names)


def target_named(name: str) -> Target:
    """``name``: one of NAMES, or ``MODULE:NAME`` of a target elsewhere. Raises KeyError."""
    module, _, own = name.rpartition(":")
    module = module or next(f"{__package__}.{kind}" for kind, names in KINDS.items() if own in names)
    targets: list[Target] = import_module(module).TARGETS
    return {target.name: target for target in targets}[own]
