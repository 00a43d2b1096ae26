"""Configurations of every family with values that nobody expects: an error names them, or a model is read."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from transformers import AutoConfig

from swarm_node.shards.families.rows.table import FAMILIES
from swarm_node.shards.formats.hf.config import hf_config
from swarm_node.swarm.errors import CheckpointError, UnsupportedModelError

from .test_keys import NEEDED

VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    -1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1, "x"],
]
VALUES += [
    {},
    {"a": {}},
    {"full_attention": None},
    ["sliding_attention"] * 2,
    {"rope_type": "yarn", "factor": 0},
]
SMALL = {
    "num_hidden_layers": 2,
    **dict.fromkeys(("layer_types", "no_rope_layers", "mlp_layer_types", "moe_layers")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_key_gives_a_model_or_our_error(family: str) -> None:
    whole = AutoConfig.for_model(family, **NEEDED.get(family, {})).to_dict()
    document = {**json.loads(json.dumps(whole, default=str)), **SMALL}
    hf_config(document, {}, "config.json")
    for key in (*document, "rope_scaling", "rope_theta", "partial_rotary_factor", "sliding_window_pattern"):
        for value in VALUES:
            with suppress(CheckpointError, UnsupportedModelError):
                hf_config({**document, key: value}, {}, "config.json")
