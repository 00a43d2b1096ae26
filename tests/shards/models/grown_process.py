"""Writes by how many bytes this process grows when it loads a client's part of the model in the folder
``sys.argv[1]``, with the C kernels, and computes once."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_client_model
from swarm_node.shards.models.load_plan import LoadOptions


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    gc.collect()
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


if __name__ == "__main__":
    with open_checkpoint(sys.argv[1]) as checkpoint:
        before = anonymous()
        model = load_client_model(checkpoint, LoadOptions(kernels="native"))
        model.logits(np.ones((1, checkpoint.config.hidden_size), np.float32))
        sys.stdout.write(f"{anonymous() - before}\n")
