"""Two nodes with memory for a quarter of their experts, beside two with all in memory: the same tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.processes.fork_server import ForkServer
from swarm_node.client import SwarmModel
from tests.shards.families.cases import SMALL
from tests.shards.families.gguf_files import write_gguf
from tests.shards.families.models import randomise
from tests.swarms.harness import Cli

pytestmark = [pytest.mark.swarm, pytest.mark.model]

SPANS = ["0-1", "2-3"]
COMMON = ["--threads", "1", "--kv-cache-tokens", "1024", "--kernels", "native"]
MEMORY = ["--memory", "1MiB"]
"""A span has 1.8 MB of experts; 0.4 to 0.6 are left for them."""
PROMPTS = ("abcab", "the quick brown fox", "z")


SIZES = {
    "vocab_size": 50,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_experts_per_tok": 4,
    "head_dim": 32,
}
FAMILIES = {
    "qwen3_moe": ("Q4_0", {"num_experts": 32, "moe_intermediate_size": 128, "norm_topk_prob": True}),
    "gpt_oss": ("MXFP4", {"num_local_experts": 32, "intermediate_size": 128, "sliding_window": 8}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    qtype, settings = FAMILIES[request.param]
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(request.param, **{**SMALL, **SIZES, **settings})
    model = randomise(transformers.AutoModelForCausalLM.from_config(config))
    path = tmp_path_factory.mktemp("experts") / "model.gguf"
    return write_gguf(model, path, quantize=qtype, only="_exps", vocabulary=True)


def tokens(swarm: LocalSwarm) -> list[tuple[int, ...]]:
    with SwarmModel.connect(model=str(swarm.model), initial_peers=swarm.initial_peers) as model:
        return [
            tuple(model.generate_detailed(prompt, max_new_tokens=24, raw=True, ignore_eos=True).token_ids)
            for prompt in PROMPTS
        ]


@pytest.fixture
def all_in_memory(model_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    with LocalSwarm(model_path, SPANS, serve_options=COMMON, launch=fork_server.launch) as swarm:
        yield swarm


@pytest.fixture
def a_quarter(model_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    options = [*COMMON, *MEMORY]
    with LocalSwarm(model_path, SPANS, serve_options=options, launch=fork_server.launch) as swarm:
        yield swarm


def test_the_tokens_are_those_of_all_in_memory(
    all_in_memory: LocalSwarm, a_quarter: LocalSwarm, cli: Cli
) -> None:
    answers = tokens(a_quarter)
    assert all(len(set(answer)) > 4 for answer in answers), "they wander, so that they can differ"
    assert answers == tokens(all_in_memory)
    done = cli("status", "--json", "--initial-peers", a_quarter.initial_peers[0])
    (model,) = json.loads(done.stdout)["models"]
    for node in model["nodes"]:
        assert (found := re.search(r"int4 \((Q4_0|MXFP4)\).*, (\d+) % of experts", node["weights"])), node[
            "weights"
        ]
        assert 10 <= int(found[2]) <= 30
