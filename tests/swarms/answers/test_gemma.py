"""Gemma 3 270M over three processes, in 16 bits, beside transformers on the same file: another family than
Llama, with windows, norms on both sides, and channels a thousand times the median."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.lab.local_swarm import LocalSwarm, split_evenly
from scripts.lab.processes.fork_server import ForkServer
from scripts.lab.real_models import UnavailableError, fetched
from scripts.lab.transformers_oracle import load_transformers_model
from swarm_node.client import SwarmModel

pytestmark = [pytest.mark.swarm, pytest.mark.model]

NEW_TOKENS = 32
SLACK = 0.05
"""Two tokens whose logits are nearer than this may change places by 16 bits; logits here go up to 30."""
PROMPTS = {
    "The capital of France is": "France",
    "Water boils at a temperature of": "degrees",
    "One, two, three, four, five, six,": "seven",
}


@pytest.fixture(scope="module")
def model_path() -> Path:
    try:
        return fetched("gemma3-270m")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def swarm(model_path: Path, fork_server: ForkServer) -> Iterator[LocalSwarm]:
    with LocalSwarm(
        model_path, split_evenly(18, 3), serve_options=["--threads", "1"], launch=fork_server.launch
    ) as running:
        yield running


@pytest.fixture(scope="module")
def reference(model_path: Path) -> Any:
    return load_transformers_model(model_path)


def test_sensible_answers_and_the_tokens_of_transformers(swarm: LocalSwarm, reference: Any) -> None:
    with SwarmModel.connect(model=str(swarm.model), initial_peers=swarm.initial_peers) as model:
        for prompt, said in PROMPTS.items():
            answer = model.generate_detailed(prompt, max_new_tokens=NEW_TOKENS, raw=True, ignore_eos=True)
            assert [str(hop.span) for hop in answer.route.hops] == ["0-5", "6-11", "12-17"]
            assert {hop.codec for hop in answer.hops} == {"int8s"}  # by the certificate that comes with it
            assert said in answer.text
            ids, given = list(answer.prompt_token_ids), list(answer.token_ids)
            with torch.inference_mode():
                logits = reference(torch.tensor([[*ids, *given[:-1]]])).logits[0, len(ids) - 1 :]
            chosen = logits.gather(1, torch.tensor(given)[:, None])[:, 0]
            assert (logits.max(-1).values - chosen).max() <= SLACK, prompt
