"""Only what is used is read: measured with the kernel's own count of resident pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's smaps"),
]

# A process of its own: the resident pages of a file are counted per process.
SCRIPT = """
import sys
from pathlib import Path
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.formats.tensors import block_tensors
from swarm_node.swarm.types import Span

def resident():
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(sys.argv[1])]
    return sum(int(next(l for l in lines[i:] if l.startswith("Rss:")).split()[1]) * 1024 for i in starts)

with open_checkpoint(sys.argv[1], blocks=Span(10, 20)) as model:
    opened = resident()
    for block in range(10, 20):
        for name in block_tensors(model.config, block):
            model.tensor(name).dequantize()
    loaded = resident()
    model.release()
    print("bytes", opened, loaded, resident())
"""


@pytest.fixture
def cold_copy(smollm2_path: Path, tmp_path: Path) -> Path:
    """The model in a file of which nothing is in memory, and that nobody else reads: a page that is touched
    is mapped together with those around it that are in memory already, by up to 2 MiB."""
    path = tmp_path / "cold.gguf"
    shutil.copyfile(smollm2_path, path)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)  # what is not written yet stays in memory
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return path


def test_ten_of_thirty_blocks_read_a_third_of_the_bytes(cold_copy: Path) -> None:
    path = cold_copy.resolve()
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=120, check=True
    )
    match = re.search(r"bytes (\d+) (\d+) (\d+)", run.stdout)
    assert match is not None
    opened, loaded, released = (int(value) for value in match.groups())
    size = path.stat().st_size
    assert opened < 0.05 * size  # header and vocabulary table, a few sampled pages
    assert loaded < 0.36 * size
    assert loaded > 0.15 * size  # else nothing was measured
    assert released < 0.02 * size
