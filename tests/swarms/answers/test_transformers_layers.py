"""A model of a family that only transformers knows, over three processes: GPT-2, which adds positions to its
tokens before the first block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scripts.lab.local_swarm import LocalSwarm, split_evenly
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.tiny_model import SPREAD, VOCAB, write_tokenizer
from swarm_node.client import SwarmModel

pytestmark = pytest.mark.swarm

BLOCKS, NEW_TOKENS = 3, 40


@pytest.fixture(scope="module")
def reference() -> Any:
    torch.manual_seed(1)
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=64, n_layer=BLOCKS, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for each in model.parameters():
            if each.ndim > 1:
                each.copy_(torch.randn_like(each) * SPREAD * each.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def swarm(
    reference: Any, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> Iterator[LocalSwarm]:
    folder: Path = tmp_path_factory.mktemp("gpt2")
    reference.save_pretrained(folder)
    write_tokenizer(folder)
    options = ["--threads", "1", "--dtype", "float32"]
    with LocalSwarm(
        folder, split_evenly(BLOCKS, 3), serve_options=options, launch=fork_server.launch
    ) as running:
        yield running


def test_the_tokens_of_transformers(swarm: LocalSwarm, reference: Any) -> None:
    with SwarmModel.connect(
        model=str(swarm.model), initial_peers=swarm.initial_peers, dtype="float32", wire_codec="none"
    ) as model:
        answers = [
            model.generate_detailed(prompt, max_new_tokens=NEW_TOKENS, raw=True, ignore_eos=True)
            for prompt in ("A token knows its place.", "So it is")
        ]
    for answer in answers:
        assert [str(hop.span) for hop in answer.route.hops] == ["0-0", "1-1", "2-2"]
        ids = torch.tensor([answer.prompt_token_ids])
        theirs = reference.generate(
            ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        assert list(answer.token_ids) == theirs[0, ids.shape[1] :].tolist()
