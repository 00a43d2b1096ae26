"""Spans of random small Llama models against transformers, for every cut and every way to feed the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.backend import SpanBackend
from swarm_node.shards.models.client_part import ClientModel
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import UsageError
from swarm_node.swarm.types import Span

BLOCKS = 4
EXACT = LoadOptions(dtype="float32", quantize="none")
KERNELS = ("native", "torch")
CUTS = [(0, *inner, BLOCKS) for count in range(BLOCKS) for inner in combinations(range(1, BLOCKS), count)]
CONTEXT = 24
"""Shorter than the prompts, so that every rope variant is asked beyond it."""

MODELS: dict[str, dict[str, Any]] = {
    "gqa-tied": {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "mha-untied-head-10": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 10},
    "mqa-head-24-wide": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24},
    "mqa-head-22-wide": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 22},
    "bias": {"num_attention_heads": 3, "num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 5000.0,
        }
    },
    "yarn-bias": {
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 5000.0,
        },
    },
}


@dataclass
class Pair:
    """One model, twice."""

    theirs: LlamaForCausalLM
    client: ClientModel
    load: Callable[..., SpanBackend[Any]]
    sessions: Callable[..., Any]

    def want(self, ids: Sequence[int], pieces: Sequence[int]) -> Tensor:
        """transformers' logits, with its own cache, fed in ``pieces`` tokens at a time."""
        return _wanted(self.theirs, (*ids,), (*pieces,))

    def hops(self, cut: Sequence[int]) -> list[Any]:
        return [self.sessions(self.load(Span(start, stop))) for start, stop in pairwise(cut)]

    def step(self, hops: Sequence[Any], ids: Sequence[int]) -> Tensor:
        x = self.embed(ids)
        for hop in hops:
            x = hop.forward(x)
        return self.logits(x)

    def embed(self, ids: Sequence[int]) -> Tensor:
        return torch.from_numpy(self.client.embed(ids))

    def logits(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.client.logits(x.numpy()))

    def got(self, ids: Sequence[int], pieces: Sequence[int], cut: Sequence[int]) -> Tensor:
        hops = self.hops(cut)
        return torch.cat([self.step(hops, ids[a:b]) for a, b in pairwise(edges(pieces))])


@cache
def _wanted(model: LlamaForCausalLM, ids: tuple[int, ...], pieces: tuple[int, ...]) -> Tensor:
    kept, logits = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for start, stop in pairwise(edges(pieces)):
            out = model(torch.tensor([ids[start:stop]]), past_key_values=kept, use_cache=True)
            logits.append(out.logits[0])
    return torch.cat(logits)


def edges(pieces: Sequence[int]) -> list[int]:
    return [sum(pieces[:index]) for index in range(len(pieces) + 1)]


def tokens(count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 60, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def write(directory: Path, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(len(directory.name))
    settings: dict[str, Any] = {
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "vocab_size": 60,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # these start as 0 and 1, which would hide mistakes
                parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[LlamaForCausalLM, Path]]:
    """Each of MODELS, written once for all kernels."""

    @cache
    def model(name: str) -> tuple[LlamaForCausalLM, Path]:
        directory = tmp_path_factory.mktemp(name)
        return write(directory, **MODELS[name]), directory

    return model


@pytest.fixture(
    scope="module", params=[(name, kernels) for name in MODELS for kernels in KERNELS], ids="-".join
)
def pair(
    request: pytest.FixtureRequest, written: Callable[[str], Any], sessions: Callable[..., Any]
) -> Iterator[Pair]:
    name, kernels = request.param
    theirs, directory = written(name)
    options = LoadOptions(dtype="float32", quantize="none", kernels=kernels)
    checkpoint = open_checkpoint(str(directory))
    loaded: dict[Span, SpanBackend[Any]] = {}

    def load(span: Span) -> SpanBackend[Any]:
        if span not in loaded:
            loaded[span] = load_backend(checkpoint, span, options)
            assert loaded[span].kernels.startswith(kernels)
        return loaded[span]

    with checkpoint:
        yield Pair(theirs, load_client_model(checkpoint, options), load, sessions)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Widths that the packed kernels take."""
    directory = tmp_path_factory.mktemp("small")
    write(directory, hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    return directory


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4)
    assert torch.equal(got.argmax(-1), want.argmax(-1))


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_every_cut(pair: Pair, cut: tuple[int, ...]) -> None:
    ids = tokens(20)
    close(pair.got(ids, [20], cut), pair.want(ids, [20]))


@pytest.mark.parametrize(
    "pieces",
    [[40], [1] * 40, [7, 13, 1, 1, 18], [23, 1, 1, 1, 14], [3] * 13 + [1]],
    ids=lambda p: f"{len(p)}",
)
def test_whole_in_chunks_and_token_by_token(pair: Pair, pieces: list[int]) -> None:
    ids = tokens(40, seed=1)
    close(pair.got(ids, pieces, (0, 1, 4)), pair.want(ids, pieces))


@pytest.mark.parametrize("kept", [0, 1, 9, 19])
def test_after_a_rollback(pair: Pair, kept: int) -> None:
    """What was fed before and rolled back leaves no trace."""
    ids, other = tokens(20, seed=2), tokens(20, seed=3)
    hops = pair.hops((0, 3, 4))
    pair.step(hops, ids[:kept] + other[kept:])
    for hop in hops:
        hop.lengths = [kept]
    parts = [part for part in (ids[kept:19], ids[19:]) if part]
    got = torch.cat([pair.step(hops, part) for part in parts])
    close(got, pair.want(ids, [20])[kept:])


def test_packed_sessions_are_each_alone(pair: Pair) -> None:
    """Rows of three sessions at different positions in one forward: as if each ran by itself."""
    before, now = (5, 0, 30), (1, 4, 2)
    rows = [0, 1, 5, 7]
    sessions = pair.sessions(pair.load(Span(0, BLOCKS)), count=3)
    for index, length in enumerate(before):
        if length:
            sessions.forward(pair.embed(tokens(length, index)), [(index, length)])
    fresh = [tokens(count, 10 + index) for index, count in enumerate(now)]
    x = pair.embed([token for part in fresh for token in part])
    packed = pair.logits(sessions.forward(x, list(enumerate(now))))
    for index, (start, stop) in enumerate(pairwise(rows)):
        ids = tokens(before[index], index) + fresh[index]
        pieces = [before[index], now[index]] if before[index] else [now[index]]
        close(packed[start:stop], pair.want(ids, pieces)[-now[index] :])


def test_a_sub_span_is_the_span_of_those_blocks(pair: Pair) -> None:
    x = torch.randn(5, 48)
    kept = x.clone()
    got = pair.sessions(pair.load(Span(0, BLOCKS))).forward(x, span=Span(1, 3))
    want = pair.sessions(pair.load(Span(1, 3))).forward(x)
    assert torch.equal(got, want)
    assert torch.equal(x, kept)  # the caller's activations are left as they are


@pytest.mark.parametrize("count", [1, 5, 60])
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (LoadOptions(quantize="int4"), 0.03),
        (LoadOptions(quantize="int8"), 0.03),
        (LoadOptions(quantize="int4", dtype="bfloat16"), 0.06),
        (LoadOptions(quantize="none", dtype="bfloat16"), 0.06),
        (LoadOptions(quantize="none", dtype="float16"), 0.01),
    ],
    ids=lambda value: f"{value.quantize}-{value.dtype}" if isinstance(value, LoadOptions) else "",
)
def test_packed_and_16_bit_spans_against_their_own_weights(
    small: Path, sessions: Callable[..., Any], options: LoadOptions, tolerance: float, count: int
) -> None:
    """torch's kernels against float32 products with the same quantized weights: what is left is their own
    rounding."""
    from swarm_node.shards.models import load_plan

    x = torch.randn(count, 64, generator=torch.Generator().manual_seed(0))
    options = replace(options, kernels="torch")
    with open_checkpoint(str(small)) as checkpoint:
        span = load_backend(checkpoint, Span(0, 2), options)
        with pytest.MonkeyPatch.context() as patch:
            # As on a device without packed kernels: the quantized values, held dense in float32.
            patch.setattr(load_plan.LoadPlan, "packed", False)
            dense = load_backend(checkpoint, Span(0, 2), replace(options, dtype="float32"))
    got, want = sessions(span).forward(x), sessions(dense).forward(x)
    assert got.dtype == want.dtype == torch.float32
    assert ((got - want).norm() / want.norm()).item() < tolerance
    assert span.weight_bytes < dense.weight_bytes


def test_progress_counts_the_bytes_of_the_span(small: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    with open_checkpoint(str(small)) as checkpoint:
        load_backend(checkpoint, Span(1, 3), EXACT, lambda *call: calls.append(call))
    done, total, label = calls[-1]
    assert done == total == 2 * 4 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 96 * 3 + 2 * 64)
    assert [call[0] for call in calls] == sorted(call[0] for call in calls)
    assert label == "block 2"
    assert {call[1] for call in calls} == {total}


def test_what_the_weights_are_is_said(small: Path) -> None:
    with open_checkpoint(str(small)) as checkpoint:
        assert load_backend(checkpoint, Span(0, 1), LoadOptions()).weights == "float32"
        assert load_backend(checkpoint, Span(0, 1), LoadOptions(quantize="int8")).weights == "int8"
        assert load_backend(checkpoint, Span(0, 1), LoadOptions(dtype="bfloat16")).weights == "bfloat16"


def test_spans_outside_are_refused(small: Path, sessions: Callable[..., Any]) -> None:
    with open_checkpoint(str(small)) as checkpoint:
        with pytest.raises(UsageError, match="2-4 are outside"):
            load_backend(checkpoint, Span(2, 5), EXACT)
        span = load_backend(checkpoint, Span(1, 3), EXACT)
    with pytest.raises(UsageError, match="0-1 are not within 1-2"):
        sessions(span).forward(torch.zeros(1, 64), span=Span(0, 2))
