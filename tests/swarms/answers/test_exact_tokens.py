"""A three-process swarm in float32 gives the tokens that transformers gives on the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.lab.local_swarm import LocalSwarm
from scripts.lab.transformers_oracle import load_transformers
from swarm_node.client import SwarmModel
from swarm_node.client.hf import AutoSwarmModelForCausalLM

pytestmark = [pytest.mark.swarm, pytest.mark.model]

NEW_TOKENS = 48
PROMPTS = [
    "What is the capital of France?",
    "Explain why the sky is blue to a child.",
    "def fibonacci(n):",
    "Translate to German: The weather is nice today.",
    "Ünïcödé, emoji 🎉 and   spaces:",
]


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> tuple[object, object]:
    """transformers' own reading of the same GGUF file, in float32."""
    return load_transformers(smollm2_path)


def test_greedy_tokens_equal_transformers(exact_swarm: LocalSwarm, reference: tuple) -> None:
    hf_model, hf_tokenizer = reference
    with SwarmModel.connect(
        model=str(exact_swarm.model),
        initial_peers=exact_swarm.initial_peers,
        wire_codec="none",
        quantize="none",
        dtype="float32",
    ) as model:
        for prompt in PROMPTS:
            ids = hf_tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
            )
            answer = model.generate_detailed(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
            assert list(answer.prompt_token_ids) == ids, prompt
            # Greedy decoding gives these tokens if each is the most likely one after those before it.
            given = list(answer.token_ids)
            with torch.inference_mode():
                logits = hf_model(torch.tensor([[*ids, *given[:-1]]])).logits[0]
            assert len(given) == NEW_TOKENS
            assert given == logits[len(ids) - 1 :].argmax(-1).tolist(), prompt
            assert [str(hop.span) for hop in answer.route.hops] == ["0-9", "10-19", "20-29"]


def test_a_transformers_model_over_real_peers(exact_swarm: LocalSwarm, reference: tuple) -> None:
    """Beams, forked on three chained hops, of a batch that is padded on the left."""
    hf_model, _ = reference
    with AutoSwarmModelForCausalLM.from_pretrained(
        exact_swarm.model,
        initial_peers=exact_swarm.initial_peers,
        wire_codec="none",
        quantize="none",
        dtype=torch.float32,
    ) as model:
        batch = model.tokenizer(
            ["The sea is", "Three uses of a paper clip are"], padding=True, return_tensors="pt"
        )
        arguments = {**batch, "max_new_tokens": 10, "num_beams": 3, "do_sample": False, "pad_token_id": 2}
        with torch.inference_mode():
            expected = hf_model.generate(**arguments)
        assert model.generate(**arguments).tolist() == expected.tolist()
