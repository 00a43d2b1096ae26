"""Peers that die, refuse or are full while transformers generates, and what it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from scripts.lab.tiny_model import write_tiny_model
from swarm_node.client.hf import SwarmCache
from swarm_node.client.routing.route_wait import WaitLimits
from swarm_node.client.session import gap_search, swarm_session
from swarm_node.swarm.errors import (
    BusyError,
    HopFailedError,
    ModelMismatchError,
    PeerUnreachableError,
    RouteError,
    SwarmError,
)
from swarm_node.swarm.transport.memory import MemoryNetwork
from swarm_node.swarm.types import Span

PROMPT = torch.tensor([list(range(5, 45))])
PADDED = {
    "inputs": torch.tensor([[0, 0, 0, 31, 90, 14, 7], [9, 33, 71, 205, 4, 3, 2]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7]),
}
IMPATIENT = WaitLimits(0.2, 0.2, 0.2)


class At(StoppingCriteria):
    """Does something when ``length`` columns are there, and never stops."""

    def __init__(self, length: int, act: Any) -> None:
        self.length, self.act = length, act

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.act is not None and input_ids.shape[1] >= self.length:
            self.act, act = None, self.act
            act()
        return torch.zeros(len(input_ids), dtype=torch.bool)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {"inputs": PROMPT},
    "beams": {"inputs": PROMPT, "num_beams": 3},
    "batch": PADDED,
    "samples": {"inputs": PROMPT, "do_sample": True, "num_return_sequences": 3},
    "prompt_lookup": {"inputs": PROMPT.repeat(1, 2), "prompt_lookup_num_tokens": 4},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [False, True])
def test_a_hop_that_dies_costs_no_token(oracle: Any, new_swarm: Any, mode: str, first: bool) -> None:
    spans = {"a": Span(0, 2), "b": Span(2, 4), "c": Span(0, 2) if first else Span(2, 4)}
    new_swarm.serve(**spans)
    model = new_swarm.client()
    arguments = {"do_sample": False, "max_new_tokens": 16, **MODES[mode]}
    torch.manual_seed(4)
    theirs = oracle.generate(**arguments)
    victims = [peer for peer, span in spans.items() if span == spans["c"]]
    killed: list[str] = []

    def kill() -> None:
        """Another node may be on trial beside the answer, with a session of a few tokens."""
        held = {peer: new_swarm.nodes[peer].statistics().server for peer in victims}
        killed.append(min(held, key=lambda peer: held[peer].free_kv_tokens))
        new_swarm.loop.run(new_swarm.kill(killed[0]))

    with SwarmCache(model) as cache:
        torch.manual_seed(4)
        at = At(arguments["inputs"].shape[1] + 6, kill)
        ours = model.generate(
            past_key_values=cache, stopping_criteria=StoppingCriteriaList([at]), **arguments
        )
        assert ours.tolist() == theirs.tolist()
        assert killed, (ours.shape, at.act)
        assert cache.repaired
    for peer in killed:
        del new_swarm.nodes[peer]
    assert new_swarm.is_idle()


@pytest.mark.parametrize("mode", ["beams", "samples"])
def test_forks_that_are_refused_are_fed_again(
    oracle: Any, model: Any, swarm: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = 0

    async def refuse(parent: Any, *_: Any) -> None:
        nonlocal refusals
        refusals += 1
        raise HopFailedError(parent.hops[0].peer_id, PeerUnreachableError("no forks today"))

    monkeypatch.setattr(swarm_session, "fork_route", refuse)
    arguments = {"do_sample": False, "max_new_tokens": 12, **MODES[mode]}
    results = []
    for one in (oracle, model):
        torch.manual_seed(2)
        results.append(one.generate(**arguments).tolist())
    assert results[0] == results[1]
    assert refusals >= 2
    assert swarm.is_idle()


@pytest.mark.parametrize("dies", [False, True])
def test_beams_far_away_take_over_sessions_instead_of_forking(
    oracle: Any, new_swarm: Any, dies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a round trip takes longer than some tokens, these are fed again with the next step."""
    forks: list[int] = []
    fork_route = swarm_session.fork_route

    async def counted(parent: Any, tokens: int, *more: Any) -> Any:
        forks.append(tokens)
        return await fork_route(parent, tokens, *more)

    splits = 0
    reorder = SwarmCache.reorder_cache

    def count(cache: SwarmCache, beams: Tensor) -> None:
        nonlocal splits
        splits += len(set(beams.tolist())) < 4
        reorder(cache, beams)

    monkeypatch.setattr(swarm_session, "fork_route", counted)
    monkeypatch.setattr(SwarmCache, "reorder_cache", count)
    new_swarm.memory = MemoryNetwork(0.03)
    new_swarm.serve(a=Span(0, 2), b=Span(2, 4), c=Span(2, 4))
    model = new_swarm.client()
    arguments = {"inputs": PROMPT, "num_beams": 4, "max_new_tokens": 16, "do_sample": False}
    theirs = oracle.generate(**arguments, return_dict_in_generate=True, output_scores=True)

    def kill() -> None:
        victim = next(peer for peer in "bc" if new_swarm.nodes[peer].statistics().server.sessions)
        new_swarm.loop.run(new_swarm.kill(victim))
        del new_swarm.nodes[victim]

    criteria = StoppingCriteriaList([At(47, kill)] if dies else [])
    ours = model.generate(
        **arguments, stopping_criteria=criteria, return_dict_in_generate=True, output_scores=True
    )
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, rtol=1e-3, atol=2e-3)
    assert splits > 5
    if not dies:
        assert len(forks) <= 6  # the first three from the prompt, before anything was measured
    ours.past_key_values.close()
    assert new_swarm.is_idle()


def test_no_route_says_which_blocks_are_missing(new_swarm: Any) -> None:
    new_swarm.serve(a=Span(0, 2))
    model = new_swarm.client()
    with pytest.raises(RouteError, match="2-3") as caught:
        model.generate(PROMPT, max_new_tokens=3)
    assert caught.value.hint
    assert new_swarm.is_idle()


def test_another_model(new_swarm: Any, tmp_path: Path) -> None:
    new_swarm.serve(a=Span(0, 4))
    other = tmp_path / new_swarm.folder.name  # the same name, and other weights
    other.mkdir()
    new_swarm.folder = write_tiny_model(other, seed=8)
    model = new_swarm.client()
    with pytest.raises(ModelMismatchError, match="differ in the weights") as caught:
        model.generate(PROMPT, max_new_tokens=3)
    assert caught.value.hint


@pytest.mark.parametrize("how", [{"num_beams": 12}, {"do_sample": True, "num_return_sequences": 12}, {}])
def test_a_batch_too_large(new_swarm: Any, how: dict[str, Any]) -> None:
    """Twelve rows of 128 tokens, of which peers have room for eight and a bit."""
    new_swarm.serve(kv_tokens=1024 if how == {} else 256, a=Span(0, 4))
    model = new_swarm.client()
    model.swarm.core._limits = IMPATIENT
    prompt = torch.arange(12)[:, None] + torch.arange(5, 45) if how == {} else PROMPT
    with pytest.raises((BusyError, RouteError)) as caught:
        model.generate(prompt, max_new_tokens=88, **{"do_sample": False, **how})
    assert "batch smaller" in caught.value.hint
    assert new_swarm.is_idle()


def test_a_cache_is_as_before_after_a_step_that_failed(
    oracle: Any, new_swarm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gap_search, "REPAIR_LIMITS", IMPATIENT)
    new_swarm.serve(a=Span(0, 2), b=Span(2, 4))
    model = new_swarm.client()
    model.swarm.core._limits = IMPATIENT
    with SwarmCache(model) as cache:
        model(input_ids=PROMPT, past_key_values=cache)
        new_swarm.loop.run(new_swarm.kill("b"))
        with pytest.raises(SwarmError) as caught:
            model(input_ids=torch.tensor([[7, 8]]), past_key_values=cache)
        assert caught.value.hint
        assert cache.get_seq_length() == 40
        new_swarm.serve(c=Span(2, 4))
        ours = model(input_ids=torch.tensor([[7, 8]]), past_key_values=cache).logits
    with torch.no_grad():
        theirs = oracle(torch.cat([PROMPT, torch.tensor([[7, 8]])], dim=1)).logits[:, -2:]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_an_interrupted_call_frees_the_peers(model: Any, swarm: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    criteria = StoppingCriteriaList([At(45, interrupt)])
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, max_new_tokens=20, num_beams=3, stopping_criteria=criteria)
    assert swarm.is_idle()


def test_a_closed_model_says_so(new_swarm: Any) -> None:
    new_swarm.serve(a=Span(0, 4))
    model = new_swarm.client()
    cache = SwarmCache(model)
    model(input_ids=PROMPT, past_key_values=cache)
    new_swarm.loop.run(model.swarm.core.close())
    for call in (
        lambda: model.generate(PROMPT, max_new_tokens=3),
        lambda: model(input_ids=PROMPT[:, :1], past_key_values=cache),
    ):
        with pytest.raises(SwarmError, match="closed"):
            call()
    cache.close()
