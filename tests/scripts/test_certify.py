"""scripts/certify: what it measures of small models, how runs are put together, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.lab.quality import certify, texts
from scripts.lab.quality.measure import REFERENCE, LocalModel
from scripts.lab.tiny_model import BLOCKS, HIDDEN, write_tiny_model
from swarm_node.shards.certificates.certificate import Certificate, certificate_text, parse_certificate
from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.swarm.codecs.scales import ScaleTable
from swarm_node.swarm.errors import UsageError
from tests.shards.families.models import saved

TEXTS = [
    ("The quick brown fox jumps over the lazy dog. " * 40, "fox"),
    ("def f(x): return x + 1\n" * 60, "code"),
]
WINDOW = 32


def measured(model: Path, kinds: tuple[str, ...], folder: Path | None = None) -> Certificate:
    folder = folder or model
    return certify.certify(
        str(model), TEXTS, tokens=128, kinds=kinds, folder=folder, window=WINDOW, threads=1
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Certificate:
    return measured(folder, ("int8s", "bf16"))


def test_every_boundary_and_codec_is_measured(certificate: Certificate) -> None:
    assert certificate.n_blocks == BLOCKS
    assert [text.tokens for text in certificate.texts] == [WINDOW] * 4
    for boundary in certificate.boundaries:
        assert boundary.width == HIDDEN
        assert boundary.largest > 0
        assert boundary.scales is not None
        assert boundary.scales.width == HIDDEN
        assert 0 < boundary.errors["bf16"].mean < boundary.errors["int8s"].mean < 0.02
    for result in certificate.codecs.values():
        assert result.same_experts is None
        for divergence in result.divergence.values():
            assert 0 < divergence.kl < 0.1  # of random weights: nothing like a real model's
            assert 0.5 < divergence.same_top_token <= 1
    fine, coarse = (certificate.codecs[kind].divergence["every_block"].kl for kind in ("bf16", "int8s"))
    assert fine < coarse
    assert certificate.problem("int8s") == "measured on 128 tokens, and it counts from 8192 tokens on"
    assert parse_certificate(certificate_text(certificate).encode(), "FILE").codecs.keys() == {
        "int8s",
        "bf16",
    }


def test_codecs_of_an_earlier_run_are_kept(certificate: Certificate, folder: Path) -> None:
    later = measured(folder, ("f8",))
    both = certify.merged(certificate, later)
    assert set(both.codecs) == {"int8s", "bf16", "f8"}
    assert both.boundaries[1].errors.keys() == {"int8s", "bf16", "f8"}
    other = replace(certificate, texts=certificate.texts[:1])
    assert certify.merged(other, later) == later


def test_the_scales_stay_those_that_int8s_was_measured_with(certificate: Certificate, folder: Path) -> None:
    flat = ScaleTable(bytes(HIDDEN))
    later = measured(folder, ("bf16",))
    changed = replace(later, boundaries=tuple(replace(each, scales=flat) for each in later.boundaries))
    assert certify.merged(certificate, changed).boundaries[1].scales == certificate.boundaries[1].scales
    assert certify.merged(changed, certificate).boundaries[1].scales == certificate.boundaries[1].scales
    assert certify.merged(later, changed).boundaries[1].scales == flat


@pytest.mark.parametrize(
    ("tokens", "used"),
    [
        (32, [("fox", 32, True)]),
        (64, [("fox", 32, True), ("code", 32, False)]),
        (100, [("fox", 32, True), ("fox", 32, False), ("code", 4, True), ("code", 32, False)]),
    ],
)
def test_tokens_are_of_all_texts(folder: Path, tokens: int, used: list[tuple[str, int, bool]]) -> None:
    with torch.inference_mode(), open_checkpoint(str(folder), client=True) as checkpoint:
        certifier = certify._Certifier(checkpoint, LocalModel(checkpoint, REFERENCE), ["bf16"])
        measured, _, found = certifier._windows(TEXTS, tokens, WINDOW)
    assert sum(map(len, measured)) == tokens
    assert [(name, n) for name, n, _ in found] == [(name, n) for name, n, _ in used]
    assert [first for *_, first in found] in ([first for *_, first in used], [False] * len(used))


def cut_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many codecs of windows a run may still measure before a SIGTERM comes."""
    measure, left = certify._Certifier._measure, [0]

    def cut(self: certify._Certifier, *arguments: Any) -> None:
        measure(self, *arguments)
        if not left[0]:
            raise SystemExit(143)
        left[0] -= 1

    monkeypatch.setattr(certify._Certifier, "_measure", cut)
    return left


def test_a_run_that_was_cut_short_goes_on(
    certificate: Certificate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scales are made again; what was measured is not measured twice, and is as if nothing happened."""
    left = cut_after(monkeypatch)
    left[0] = 3
    with pytest.raises(SystemExit):
        measured(folder, ("int8s", "bf16"), tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    left[0] = 5
    assert measured(folder, ("int8s", "bf16"), tmp_path) == certificate
    assert left == [0]


def test_a_run_that_was_cut_short_goes_on_with_one_of_its_codecs(
    certificate: Certificate, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured of the others stays in the file for a later run."""
    left = cut_after(monkeypatch)
    left[0] = 3
    with pytest.raises(SystemExit):
        measured(folder, ("int8s", "bf16"), tmp_path)
    left[0] = 2
    one = measured(folder, ("int8s",), tmp_path)
    assert left == [0]
    assert one.codecs["int8s"] == certificate.codecs["int8s"]
    assert one.boundaries[1].errors == {"int8s": certificate.boundaries[1].errors["int8s"]}
    certify.Progress(tmp_path, one.digest).forget(["int8s"])
    left[0] = 3
    other = measured(folder, ("bf16",), tmp_path)
    assert left == [0]
    assert certify.merged(one, other) == certificate
    certify.Progress(tmp_path, one.digest).forget(["bf16"])
    assert not list(tmp_path.iterdir())


def test_progress_of_other_texts_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever they are called."""
    left = cut_after(monkeypatch)
    left[0] = 3
    with pytest.raises(SystemExit):
        measured(folder, ("bf16",), tmp_path)
    monkeypatch.setattr("tests.scripts.test_certify.TEXTS", [(text[9:], name) for text, name in TEXTS])
    left[0] = 3
    with pytest.raises(SystemExit):
        measured(folder, ("bf16",), tmp_path)


def test_the_share_and_the_time_left_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    left = certify.TimeLeft(80, 20)
    assert left.of(20) == "25 %"
    now[0] += 30
    assert left.of(30) == "38 %, 2 min left"
    now[0] += 30
    assert left.of(78) == "98 %, 2 s left"


def test_without_a_terminal_progress_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    progress = texts.ProgressLine(lambda: now[0])
    for number in range(12):
        progress.show(f"window {number}")
        now[0] += 1
    progress.show("")
    assert capsys.readouterr().err.split("\n") == ["window 0", "window 5", "window 10", ""]


def test_chosen_experts_are_compared(tmp_path: Path) -> None:
    """Whatever their order."""
    _, folder = saved("mixtral", tmp_path)
    with torch.inference_mode(), open_checkpoint(str(folder), client=True) as checkpoint:
        model = LocalModel(checkpoint, REFERENCE)
        ids = list(range(20))
        with certify.chosen_experts() as chosen:
            model.all_hidden(ids)
        with certify.chosen_experts() as again:
            model.all_hidden(ids)
        used = checkpoint.config.blocks[0].experts
    assert used is not None
    assert [each.shape for each in chosen] == [(20, used.used)] * checkpoint.config.n_blocks
    assert all(certify.alike(one, other) == one.size for one, other in zip(chosen, again, strict=True))
    assert certify.alike(np.array([[1, 2], [3, 4]]), np.array([[2, 5], [4, 3]])) == 3


def test_a_model_that_is_too_short_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, blocks=2)
    with pytest.raises(UsageError, match="2 blocks cannot be cut three times"):
        measured(tmp_path, ("bf16",))
