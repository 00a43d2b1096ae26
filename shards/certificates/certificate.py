"""A certificate: what each wire codec costs one model's file, at every boundary and in the whole.

Boundary b is where rows enter block b; the last is where they leave the model. A certificate holds figures
and scales only; whether a codec passed follows from them here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...swarm.codecs.names import KINDS
from ...swarm.codecs.scales import ScaleTable
from ...swarm.errors import CheckpointError, UsageError
from ...swarm.terminal_text import visible
from ...swarm.types import MAX_BLOCKS
from ..formats.bounded_json import JsonBounds, parse_json
from ..formats.values.bounds import MAX_WIDTH
from ..formats.values.fields import Fields

FORMAT = "swarm-node codec certificate 1"
BOUNDS = JsonBounds(nbytes=64 << 20, values=1 << 20)
"""A model of 126 blocks 16384 wide takes 3 MB."""
LIMITS = {"three_cuts": 1e-3, "six_edges": 2e-3, "every_block": 5e-3}
"""The largest mean Kullback-Leibler divergence, in nats a token, with which a codec passes: of three cuts, of
all edges of three hops through the client, and of a cut at every boundary."""
LEAST_EXPERTS = 0.99
"""With three cuts this share of a model's chosen experts must stay the same."""
LEAST_TOKENS = 8192
"""Tokens of text, of all texts together, that a codec must be measured on to pass."""
LARGEST_FP16 = 32768.0
"""fp16 passes only where all values were smaller, half of what it holds: other texts have larger ones."""
_MOST_TEXTS = 64
_LONGEST_NAME = 200
_DIGEST = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RowError:
    """The error of rows (``fidelity.row_error``): their mean, and what one in a hundred exceeds."""

    mean: float
    p99: float


@dataclass(frozen=True, slots=True)
class Boundary:
    """Rows of ``width`` values. ``largest``: magnitude that was seen. ``massive_rows``: that held a value a
    thousand times the boundary's median. ``outlier_channels``: whose root mean square is above 20 times the
    channels' median. ``scales``: those of int8s."""

    width: int
    largest: float
    massive_rows: int
    outlier_channels: int
    errors: Mapping[str, RowError]
    scales: ScaleTable | None = None


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of the distributions predicted: mean Kullback-Leibler divergence, and how often the most likely token
    stayed the same."""

    kl: float
    same_top_token: float


@dataclass(frozen=True, slots=True)
class CodecResult:
    """By the names in LIMITS. ``same_experts``: the share of chosen experts that stayed the same with three
    cuts; None for a model without experts."""

    divergence: Mapping[str, Divergence]
    same_experts: float | None = None

    @property
    def problem(self) -> str:
        """Why the codec does not pass; empty where it does."""
        for name, limit in LIMITS.items():
            if name not in self.divergence:
                return f"{name.replace('_', ' ')} not measured"
            if self.divergence[name].kl > limit:
                return f"{name.replace('_', ' ')}: KL {self.divergence[name].kl:.2g} above {limit:g}"
        if self.same_experts is not None and self.same_experts < LEAST_EXPERTS:
            return f"{self.same_experts:.1%} of the chosen experts stay the same"
        return ""


@dataclass(frozen=True, slots=True)
class TextUsed:
    """``tokens`` of a text, in windows; ``first_token``: each began with the model's first special token."""

    name: str
    tokens: int
    first_token: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """``name`` and ``family`` are for people. ``boundaries``: one more than the model has blocks.
    ``made_by``: the program's version."""

    digest: str
    name: str
    family: str
    made_by: str
    window: int
    texts: tuple[TextUsed, ...]
    boundaries: tuple[Boundary, ...]
    codecs: Mapping[str, CodecResult]

    @property
    def n_blocks(self) -> int:
        return len(self.boundaries) - 1

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(each.width for each in self.boundaries)

    @property
    def tokens(self) -> int:
        """Of all texts together."""
        return sum(text.tokens for text in self.texts)

    @property
    def shortness(self) -> str:
        """What it lacks to count at all; empty where it counts."""
        if self.tokens >= LEAST_TOKENS:
            return ""
        return f"measured on {self.tokens} tokens, and it counts from {LEAST_TOKENS} tokens on"

    def problem(self, kind: str) -> str:
        """Why a kind of codec does not pass for this model; empty where it does."""
        result = self.codecs.get(kind)
        if result is None:
            return "not measured"
        if self.shortness:
            return self.shortness
        if kind == "fp16" and (largest := max(each.largest for each in self.boundaries)) >= LARGEST_FP16:
            return f"values reach {largest:.0f}"
        return result.problem

    @property
    def passed(self) -> frozenset[str]:
        """Kinds of codecs."""
        return frozenset(kind for kind in self.codecs if not self.problem(kind))

    @property
    def failed(self) -> frozenset[str]:
        """Kinds that were measured and did not pass: not to be taken unless a person asks for them."""
        return frozenset(self.codecs) - self.passed

    def scales(self) -> dict[int, ScaleTable]:
        """By boundary; none where int8s did not pass."""
        if "int8s" not in self.passed:
            return {}
        tables = {number: each.scales for number, each in enumerate(self.boundaries)}
        return {number: table for number, table in tables.items() if table is not None}


def certificate_text(certificate: Certificate) -> str:
    """As it is kept in a file."""

    def boundary(each: Boundary) -> dict[str, Any]:
        return {
            "width": each.width,
            "largest": _short(each.largest),
            "massive_rows": each.massive_rows,
            "outlier_channels": each.outlier_channels,
            "errors": {
                kind: {"mean": _short(error.mean), "p99": _short(error.p99)}
                for kind, error in each.errors.items()
            },
            "scales": None if each.scales is None else base64.b64encode(each.scales.exponents).decode(),
        }

    def result(each: CodecResult) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: {"kl": _short(divergence.kl), "same_top_token": _short(divergence.same_top_token)}
            for name, divergence in each.divergence.items()
        }
        return found | {"same_experts": each.same_experts}

    document = {
        "format": FORMAT,
        "digest": certificate.digest,
        "name": certificate.name,
        "family": certificate.family,
        "made_by": certificate.made_by,
        "window": certificate.window,
        "texts": [
            {"name": text.name, "tokens": text.tokens, "first_token": text.first_token}
            for text in certificate.texts
        ],
        "codecs": {kind: result(each) for kind, each in certificate.codecs.items()},
        "boundaries": [boundary(each) for each in certificate.boundaries],
    }
    return json.dumps(document, indent=1) + "\n"


def parse_certificate(content: bytes, where: str) -> Certificate:
    """Raises CheckpointError for what is no certificate, naming the key. ``where``: the file."""
    try:
        document = parse_json(content, BOUNDS)
    except ValueError as error:
        raise CheckpointError(f"{where} is not usable JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"{where} is not a {FORMAT}", hint="Make one with scripts/certify MODEL.")
    fields = Fields(document, where)
    digest = fields.text("digest")
    if not _DIGEST.fullmatch(digest):
        raise fields.wrong("digest", "64 hexadecimal digits")
    boundaries = fields.sections("boundaries")
    if not 2 <= len(boundaries) <= MAX_BLOCKS + 1:
        raise CheckpointError(
            f"{where}: boundaries has {len(boundaries)} entries, expected one a block and one"
        )
    texts = fields.sections("texts")
    if len(texts) > _MOST_TEXTS:
        raise CheckpointError(f"{where}: texts has {len(texts)} entries, expected up to {_MOST_TEXTS}")
    return Certificate(
        digest=digest,
        name=_name(fields, "name"),
        family=_name(fields, "family"),
        made_by=_name(fields, "made_by"),
        window=fields.integer("window", least=1),
        texts=tuple(
            TextUsed(_name(text, "name"), text.integer("tokens"), text.flag("first_token")) for text in texts
        ),
        boundaries=tuple(map(_boundary, boundaries)),
        codecs=_by_kind(fields.section("codecs"), _result),
    )


def _boundary(fields: Fields) -> Boundary:
    width = fields.integer("width", least=1, most=MAX_WIDTH)
    encoded = fields.optional_text("scales")
    scales = None
    if encoded is not None:
        try:
            scales = ScaleTable(base64.b64decode(encoded.encode(), validate=True))
        except (binascii.Error, UnicodeEncodeError, UsageError) as error:
            raise CheckpointError(f"{fields.named('scales')} is no table of scales: {error}") from None
        if scales.width != width:
            raise CheckpointError(f"{fields.named('scales')} has {scales.width} channels, expected {width}")
    return Boundary(
        width=width,
        largest=fields.number("largest", least=0),
        massive_rows=fields.integer("massive_rows"),
        outlier_channels=fields.integer("outlier_channels", most=width),
        errors=_by_kind(fields.section("errors"), _error),
        scales=scales,
    )


def _by_kind(fields: Fields | None, read: Callable[[Fields], T]) -> dict[str, T]:
    """What is said of the kinds of codecs that this version knows."""
    return {kind: read(each) for kind, each in (fields.inner() if fields else ()) if kind in KINDS}


def _error(fields: Fields) -> RowError:
    return RowError(*(fields.number(key, least=0, below=1e30) for key in ("mean", "p99")))


def _result(fields: Fields) -> CodecResult:
    measured = {name: each for name, each in fields.inner() if name in LIMITS}
    return CodecResult(
        {
            # A divergence is 0 or more, but for rounding.
            name: Divergence(each.number("kl", above=-1.0, below=1e30), _share(each, "same_top_token"))
            for name, each in measured.items()
        },
        _share(fields, "same_experts") if fields.is_given("same_experts") else None,
    )


def _name(fields: Fields, key: str) -> str:
    return visible(fields.text(key)[:_LONGEST_NAME])


def _share(fields: Fields, key: str) -> float:
    return fields.number(key, least=0, below=1 + 1e-9)


def _short(value: float) -> float:
    """Four digits are enough to judge by."""
    return float(f"{value:.4g}")
