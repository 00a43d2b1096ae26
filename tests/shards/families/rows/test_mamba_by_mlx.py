"""Files with Mamba-2 that MLX has written: the same weights in another layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ..models import saved
from ..test_layouts import Tensors, assert_same, of_experts, read, rewritten


def as_mlx_writes_them(tensors: Tensors) -> Tensors:
    """Convolutions with their taps in the middle, experts stacked; of Granite gates and ups apart, and where
    it has no experts, what all tokens go through under another name."""
    others, stacks = of_experts(tensors)
    names = {"up_proj": "fc1", "down_proj": "fc2"}
    found = {f"{home}.switch_mlp.{names[part]}.weight": value for (home, part), value in stacks.items()}
    stacked = any("block_sparse_moe" in name for name in others)
    for name, value in others.items():
        mlp = name.rpartition("shared_mlp.")[0] + "mlp"
        home = name.rpartition("block_sparse_moe.")[0] + "block_sparse_moe.switch_mlp"
        if name.endswith("conv1d.weight"):
            found[name] = np.ascontiguousarray(np.moveaxis(value, 2, 1))
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            gate, up = np.split(value, 2, 1)
            found |= {f"{home}.gate_proj.weight": gate.copy(), f"{home}.up_proj.weight": up.copy()}
        elif name.endswith("block_sparse_moe.output_linear.weight"):
            found[f"{home}.down_proj.weight"] = value
        elif not stacked and name.endswith("shared_mlp.input_linear.weight"):
            gate, up = np.split(value, 2)
            found |= {f"{mlp}.gate_proj.weight": gate.copy(), f"{mlp}.up_proj.weight": up.copy()}
        elif not stacked and name.endswith("shared_mlp.output_linear.weight"):
            found[f"{mlp}.down_proj.weight"] = value
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("case", ["granitemoehybrid", "granitemoehybrid-dense", "nemotron_h-experts"])
def test_files_that_mlx_has_written(case: str, tmp_path: Path) -> None:
    _, folder = saved(case, tmp_path)
    wanted = read(folder)
    assert_same(read(rewritten(folder, as_mlx_writes_them)), wanted)
