"""Logits by rough proposal and exact rows, against float64: also where everything is nearly a tie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from swarm_node.shards.formats.blocks.norm import NormConfig
from swarm_node.shards.formats.raw_tensor import RawTensor
from swarm_node.shards.kernels.head import NativeHead
from swarm_node.shards.kernels.linear import ActivationPrecision, native_int8
from swarm_node.shards.kernels.rows import NativeNorm
from swarm_node.shards.layers.quantize import Int4Groups, as_torch_holds, to_int4, to_int8, to_int8_groups
from swarm_node.shards.models.head import EXACT_ROWS, MOST_CANDIDATES, PROVEN, FinalNorm, RefinedHead
from swarm_node.shards.models.rounding_bounds import (
    RoundingBounds,
    RowErrors,
    native_rounding,
    torch_rounding,
)
from swarm_node.shards.torch.head import TorchHead
from swarm_node.shards.torch.tensors.linear import Int4Linear, Int8Linear, Linear, Scratch

QTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
KERNELS = ["native", "torch int8", "torch int4"]


class Case:
    """A refined head of ``weight`` (vocab, hidden), whose rows the file has in ``dtype``."""

    def __init__(
        self, weight: Tensor, kernels: str = "native", dtype: torch.dtype = torch.bfloat16, threads: int = 1
    ) -> None:
        weight = weight.to(dtype)
        vocab, hidden = weight.shape
        stored = weight.view(torch.uint8).view(vocab, -1).numpy()
        self.raw = RawTensor("lm_head.weight", (vocab, hidden), QTYPES[dtype], stored)
        self.norm = FinalNorm(NormConfig(1e-5), None, None, hidden)
        errors = RoundingBounds()
        rows = weight.float().numpy()

        def watched(parts: Any) -> Any:
            errors.add(RowErrors.of(rows, parts.dequantize()))
            return parts

        if kernels == "native":
            linear = native_int8([watched(to_int8_groups(rows))], None, ActivationPrecision.CLOSE)
            self.rounding = native_rounding(ActivationPrecision.CLOSE, hidden)
            self.propose = NativeHead(NativeNorm(self.norm.settings, self.norm.weight), linear, threads)
        elif kernels == "torch int8":
            self.rounding = torch_rounding(hidden)
            self.propose = self.on_torch(Int8Linear(watched(to_int8(rows)), None, Scratch()))
        else:
            self.rounding = torch_rounding(hidden)
            groups: Int4Groups = to_int4(rows)
            errors.add(RowErrors.of(rows, as_torch_holds(groups).dequantize()))
            self.propose = self.on_torch(Int4Linear(groups, None, Scratch()))
        self.bounds = errors.bounds(self.rounding)
        self.head = RefinedHead(self.norm, self.propose, self.raw, self.bounds, self.rounding.of_output)
        self.weight = weight

    def on_torch(self, linear: Linear) -> TorchHead:
        return TorchHead(self.norm, linear, "cpu", "float32", torch.get_num_threads())

    def normed(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.norm(x.numpy()))

    def rough(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.propose(x.numpy()))

    def logits(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.head(x.numpy()))

    def exact(self, x: Tensor) -> Tensor:
        """(T, vocab): the products in float64, rounded once."""
        return (self.normed(x).double() @ self.weight.double().t()).float()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(case: Case, x: Tensor) -> None:
    """The PROVEN best are those of the full product, in value and order, and nothing else is above them."""
    got, want = case.logits(x), case.exact(x)
    count = min(PROVEN, want.shape[1])
    assert torch.equal(got.topk(count).values, want.topk(count).values)
    assert torch.equal(got.argmax(-1), want.argmax(-1))
    least = want.topk(count).values[:, -1:]
    assert torch.equal(got >= least, want >= least)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("vocab", "hidden"), [(3000, 64), (4096, 512), (640, 2048)])
def test_random_weights(kernels: str, vocab: int, hidden: int) -> None:
    case = Case(normal(vocab, hidden, seed=vocab), kernels)
    for rows in (1, 5, EXACT_ROWS):
        check(case, normal(rows, hidden, seed=rows))
    loud = normal(2, hidden)
    loud[:, 7] *= 500  # as trained models have them
    check(case, loud)
    assert case.head.rows == 6 + EXACT_ROWS + 2


@pytest.mark.parametrize("kernels", ["native", "torch int8"])
@pytest.mark.parametrize("dtype", QTYPES)
def test_types_of_the_file(dtype: torch.dtype, kernels: str) -> None:
    case = Case(normal(3000, 96), kernels, dtype)
    check(case, normal(4, 96))
    assert (case.head._native is not None) == (kernels == "native")


def test_rows_anywhere_in_the_file_and_several_threads() -> None:
    """A safetensors header may be of any length."""
    x = normal(3, 512)
    case, other = Case(normal(5000, 512)), Case(normal(5000, 512), threads=3)
    shifted = np.zeros(case.raw.nbytes + 1, np.uint8)
    shifted[1:] = case.raw.stored.ravel()
    case.head._raw = RawTensor("lm_head.weight", case.raw.shape, "BF16", shifted[1:].reshape(5000, -1))
    check(case, x)
    assert torch.equal(case.logits(x), other.logits(x))


def test_few_rows_are_computed_again() -> None:
    """That it pays: of 16,000 random rows 1,024 wide, a few hundred."""
    case = Case(normal(16_000, 1024))
    check(case, normal(4, 1024))
    assert case.head.given_up == 0
    assert case.head.refined / case.head.rows < 1000


def near_ties(count: int, hidden: int, x: Tensor, *, others: int = 4000, apart: float = 0.02) -> Tensor:
    """``count`` rows whose products with ``x`` differ by less than eight bits can tell, each in another way,
    far above ``others``."""
    base = (x / x.norm()).repeat(count, 1) * 3
    ties = base + normal(count, hidden, seed=3) * apart
    return torch.cat((ties, normal(others, hidden, seed=4) * 0.02))


@pytest.mark.parametrize("kernels", KERNELS)
def test_near_ties(kernels: str) -> None:
    x = normal(1, 512, seed=9)
    case = Case(near_ties(200, 512, x), kernels)
    rough, exact = case.rough(x), case.exact(x)
    assert not torch.equal(rough.topk(PROVEN).indices.sort().values, exact.topk(PROVEN).indices.sort().values)
    check(case, x)
    check(case, torch.cat((x, -x, x + normal(1, 512) * 0.01)))


def test_the_rough_best_is_not_the_best() -> None:
    wrong = 0
    for seed in range(20):
        x = normal(1, 256, seed=seed)
        case = Case(near_ties(40, 256, x, others=1000, apart=0.0005))
        wrong += int(case.rough(x).argmax()) != int(case.exact(x).argmax())
        check(case, x)
    assert wrong >= 5, "the test would see a head that takes the rough best"


@pytest.mark.parametrize("kernels", KERNELS)
def test_more_ties_than_can_be_looked_at(kernels: str) -> None:
    """Then everything is computed exactly."""
    x = normal(1, 256, seed=1)
    case = Case(near_ties(900, 256, x, others=1000), kernels)
    found = case.head.candidates(case.propose(x.numpy())[0], case.norm(x.numpy())[0])
    assert len(found) > 1900 // MOST_CANDIDATES
    check(case, x)
    assert case.head.given_up == 1
    assert torch.equal(case.logits(x), case.exact(x))


def test_equal_rows() -> None:
    """The lowest index of equals wins, as in the full product."""
    x = normal(1, 256)
    weight = normal(2000, 256) * 0.02
    weight[[1999, 1000, 17]] = x / 10
    case = Case(weight)
    check(case, x)
    assert int(case.logits(x).argmax()) == 17


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_bound_holds_and_is_reached(kernels: str) -> None:
    """For inputs that lie along a row's own rounding error, too, where the bound is nearly met."""
    hidden = 512
    weight = normal(1000, hidden, seed=5)
    case = Case(weight, kernels)
    quantize = {"native": to_int8_groups, "torch int8": to_int8, "torch int4": to_int4}[kernels]
    held = torch.from_numpy(quantize(case.weight.float().numpy()).dequantize())  # type: ignore[operator]
    worst = (case.weight.float() - held)[:8]
    inputs = torch.cat((worst * 1e3, -worst * 1e3, normal(8, hidden), normal(8, hidden) ** 5))
    x = case.normed(inputs)
    rough = torch.cat([case.rough(row) for row in inputs.split(1)])
    off = (rough.double() - x.double() @ case.weight.double().t()).abs()
    allowed = (
        torch.from_numpy(case.bounds) * x.norm(dim=1, keepdim=True) + case.rounding.of_output * rough.abs()
    )
    assert (off <= allowed).all()
    assert float((off / allowed)[:8].diagonal().max()) > 0.3, "not vacuous"


def test_nonsense_is_not_hidden() -> None:
    case = Case(normal(2000, 64))
    for value in (float("nan"), float("inf")):
        x = normal(1, 64)
        x[0, 3] = value
        assert not case.logits(x).isfinite().all()
    assert torch.equal(case.logits(torch.zeros(1, 64)), torch.zeros(1, 2000))


def test_the_same_bits_alone_and_among_others() -> None:
    case = Case(normal(3000, 256))
    x = normal(EXACT_ROWS, 256)
    assert torch.equal(case.logits(x), torch.cat([case.logits(row) for row in x.split(1)]))


def test_weights_with_tiny_and_huge_rows() -> None:
    weight = normal(3000, 256) * torch.logspace(-30, 3, 3000)[:, None]
    weight[5] = 0
    case = Case(weight)
    check(case, normal(3, 256))
    assert np.isfinite(case.bounds).all()
