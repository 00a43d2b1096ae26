"""Certificates: kept as they are, judged by their figures, and no file can make trouble."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swarm_node.shards.certificates.certificate import (
    LEAST_TOKENS,
    LIMITS,
    Boundary,
    Certificate,
    CodecResult,
    Divergence,
    RowError,
    TextUsed,
    certificate_text,
    parse_certificate,
)
from swarm_node.shards.certificates.finding import certificates_folder, find_certificate
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.errors import CheckpointError
from swarm_node.swarm.fidelity.error_watch import LARGEST_ERROR, LARGEST_P99
from swarm_node.swarm.types import ModelRef

DIGEST = "ab" * 32
MODEL, WIDTHS = ModelRef("m", DIGEST, 2), [8, 8, 8]
GOOD = CodecResult({name: Divergence(limit, 0.99) for name, limit in LIMITS.items()})
TABLES = [ScaleTable.from_rms(np.exp2(np.arange(8.0) - number)) for number in range(3)]


def certificate(**changes: Any) -> Certificate:
    boundaries = tuple(
        Boundary(8, 100.0 * number, number, 2, {"int8s": RowError(0.005, 0.01)}, table)
        for number, table in enumerate(TABLES)
    )
    known = Certificate(
        digest=DIGEST,
        name="tiny",
        family="llama",
        made_by="1.2.3",
        window=512,
        texts=(TextUsed("a text", LEAST_TOKENS, True),),
        boundaries=boundaries,
        codecs={"int8s": GOOD, "fp16": GOOD},
    )
    return replace(known, **changes)


def parsed(found: Certificate) -> Certificate:
    return parse_certificate(certificate_text(found).encode(), "FILE")


def test_a_certificate_comes_back_as_it_was() -> None:
    moe = CodecResult(GOOD.divergence, same_experts=0.995)
    before = certificate(codecs={"int8s": moe, "f8": GOOD})
    assert parsed(before) == before
    assert before.n_blocks == 2
    assert before.scales() == dict(enumerate(TABLES))


def result(**kl: float) -> CodecResult:
    changed = {name: Divergence(value, 0.9) for name, value in kl.items()}
    return CodecResult({**GOOD.divergence, **changed})


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (result(three_cuts=1.1e-3), "three cuts: KL 0.0011 above 0.001"),
        (result(six_edges=2.1e-3), "six edges"),
        (result(every_block=5.1e-3), "every block"),
        (CodecResult({"three_cuts": Divergence(0.0, 1.0)}), "six edges not measured"),
        (CodecResult(GOOD.divergence, same_experts=0.98), "98.0% of the chosen experts"),
    ],
)
def test_what_fails_is_not_used(bad: CodecResult, problem: str) -> None:
    found = parsed(certificate(codecs={"int8s": bad, "f8": GOOD}))
    assert found.problem("int8s").startswith(problem)
    assert (found.passed, found.failed, found.scales()) == ({"f8"}, {"int8s"}, {})
    assert found.problem("bf16") == "not measured"


def test_too_few_tokens_prove_nothing() -> None:
    found = certificate(texts=(TextUsed("a text", LEAST_TOKENS - 1, True),))
    assert found.passed == frozenset()
    assert found.problem("int8s") == "measured on 8191 tokens, and it counts from 8192 tokens on"


def test_fp16_needs_room_above_the_largest_value() -> None:
    assert "fp16" in certificate().passed
    large = replace(certificate().boundaries[0], largest=32768.0)
    found = certificate(boundaries=(large, *certificate().boundaries[1:]))
    assert found.problem("fp16") == "values reach 32768"
    assert "int8s" in found.passed


def changed(path: str, value: Any) -> bytes:
    """The file with one value set, or left out: ``...``."""
    document = json.loads(certificate_text(certificate()))
    inner, keys = document, path.split("/")
    for key in keys[:-1]:
        inner = inner[int(key) if key.isdigit() else key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", "swarm-node codec certificate 9", "is not a swarm-node codec certificate 1"),
        ("digest", "../../etc/passwd", "digest"),
        ("digest", "AB" * 32, "digest"),
        ("name", 7, "name"),
        ("window", 0, "window"),
        ("texts", [{"name": "x", "tokens": 1, "first_token": True}] * 65, "texts has 65"),
        ("texts/0/tokens", -1, "tokens"),
        ("boundaries", [], "boundaries has 0"),
        ("boundaries", {"0": {}}, "boundaries"),
        ("boundaries/0/width", 0, "width"),
        ("boundaries/0/width", 9, "scales has 8 channels, expected 9"),
        ("boundaries/0/width", 10**9, "width"),
        ("boundaries/1/largest", float("inf"), "largest"),
        ("boundaries/1/largest", ..., "largest"),
        ("boundaries/1/outlier_channels", 9, "outlier_channels"),
        ("boundaries/1/scales", "@@", "scales"),
        ("boundaries/1/scales", "fw==", "no table of scales"),  # an exponent of 127
        ("boundaries/1/scales", "", "no table of scales"),
        ("boundaries/1/scales", "\u00e9", "no table of scales"),
        ("boundaries/1/errors", [1], "errors"),
        ("boundaries/1/errors/int8s/p99", -0.1, "p99"),
        ("codecs/int8s/three_cuts/kl", "low", "kl"),
        ("codecs/int8s/three_cuts/kl", float("nan"), "kl"),
        ("codecs/int8s/three_cuts/same_top_token", 1.5, "same_top_token"),
        ("codecs/int8s/same_experts", 2, "same_experts"),
    ],
)
def test_a_damaged_file_is_told_by_its_key(path: str, value: Any, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_certificate(changed(path, value), "FILE")
    assert said in caught.value.message
    assert caught.value.message.startswith("FILE")


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 10**5, b"\xff", b'{"format": 1}', b"null"])
def test_other_files_are_none(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        parse_certificate(content, "FILE")


def test_unknown_codecs_and_layouts_are_left_out() -> None:
    document = json.loads(certificate_text(certificate()))
    document["codecs"]["int2"] = {"anything": 1}
    document["codecs"]["int8s"]["two_moons"] = {"kl": 5}
    assert parse_certificate(json.dumps(document).encode(), "FILE") == certificate()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path))
    certificates_folder().mkdir()
    return certificates_folder() / f"{DIGEST}.json"


def test_the_user_s_own_is_found_by_the_digest(own: Path) -> None:
    assert find_certificate(MODEL, WIDTHS) is None
    own.write_text(certificate_text(certificate()))
    assert find_certificate(MODEL, WIDTHS) == certificate()


@pytest.mark.parametrize("wrong", ["another model", "other blocks", "other width", "other widths", "damaged"])
def test_what_cannot_be_used_is_passed_over(own: Path, caplog: pytest.LogCaptureFixture, wrong: str) -> None:
    text = certificate_text(certificate(digest="cd" * 32) if wrong == "another model" else certificate())
    own.write_text(text[:-20] if wrong == "damaged" else text)
    widths = {"other blocks": [8] * 4, "other width": [8, 8, 9], "other widths": [9] * 3}.get(wrong, WIDTHS)
    assert find_certificate(MODEL, widths) is None
    (line,) = [each for each in caplog.messages if "certificate_unusable" in each]
    assert str(own) in line


def test_one_of_too_few_tokens_is_passed_over_and_says_so(
    own: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = certificate(texts=(TextUsed("a text", 1024, True),))
    own.write_text(certificate_text(short))
    assert find_certificate(MODEL, WIDTHS) is None
    (line,) = caplog.messages
    assert str(own) in line
    assert "measured on 1024 tokens, and it counts from 8192 tokens on" in line


def shipped() -> list[Path]:
    return sorted(Path(str(files("swarm_node.shards.certificates") / "data")).glob("*.json"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem[:12])
def test_what_comes_with_the_program_can_be_used(path: Path, own: Path) -> None:
    """Each has scales for every boundary, made and judged on enough text."""
    known = parse_certificate(path.read_bytes(), path.name)
    assert known.digest == path.stem
    assert find_certificate(ModelRef("m", known.digest, known.n_blocks), known.widths) == known
    assert "int8s" in known.passed
    assert set(known.scales()) == set(range(known.n_blocks + 1))
    for kind in known.passed:
        for boundary in known.boundaries:
            assert boundary.errors[kind].mean <= LARGEST_ERROR
            assert boundary.errors[kind].p99 <= LARGEST_P99


def test_certificates_come_with_the_program() -> None:
    families = {parse_certificate(path.read_bytes(), path.name).family for path in shipped()}
    assert families >= {"gemma3_text", "llama"}
