"""Files of blocks with states that MLX has written: the same weights in another layout."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from swarm_node.swarm.errors import CheckpointError

from ..models import saved
from ..test_layouts import Tensors, as_mlx_writes_them, assert_same, of_experts, read, rewritten


def as_mlx_writes_mamba(tensors: Tensors) -> Tensors:
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
def test_mamba(case: str, tmp_path: Path) -> None:
    _, folder = saved(case, tmp_path)
    wanted = read(folder)
    assert_same(read(rewritten(folder, as_mlx_writes_mamba)), wanted)


def as_mlx_writes_states(tensors: Tensors, offset: bool = True) -> Tensors:
    """Convolutions are turned, and norms have the ones that are added to their weights, if any are."""
    norms = re.compile(r".*(layernorm|q_norm|k_norm|model\.norm)\.weight")
    found = {}
    for name, value in as_mlx_writes_them(tensors).items():
        turned = np.ascontiguousarray(value.swapaxes(1, 2)) if "conv" in name and value.ndim == 3 else value
        found[name] = turned + np.float32(1) if offset and norms.fullmatch(name) else turned
    return found


@pytest.mark.parametrize("case", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "lfm2"])
def test_deltas_and_short_convolutions(case: str, tmp_path: Path) -> None:
    _, folder = saved(case, tmp_path)
    wanted = read(folder)
    ours = read(rewritten(folder, partial(as_mlx_writes_states, offset=case != "lfm2")))
    assert ours.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(ours[name], values, atol=2e-7, err_msg=name)  # 1 + x - 1 is rounded


@pytest.mark.parametrize("case", ["bamba", "falcon_h1", "kimi_linear"])
def test_other_convolutions_are_refused(case: str, tmp_path: Path) -> None:
    """Its files of these are otherwise unlike, too."""
    _, folder = saved(case, tmp_path)
    with pytest.raises(CheckpointError, match="has shape"):
        read(rewritten(folder, as_mlx_writes_states))
