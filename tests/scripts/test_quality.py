"""scripts/quality: how it reads a text, and that the default codec keeps its promise on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.lab.quality import measure, texts
from swarm_node.swarm.codecs.kinds import F8, NONE
from swarm_node.swarm.errors import UsageError

PROSE = (
    "It was a bright cold morning when the two of them walked down to the harbour. The boats had gone out "
    "before sunrise, and only the old men were left, mending nets and talking about the weather. "
) * 6


def test_text_begins_with_the_first_chapter_and_ends_with_the_book() -> None:
    contents = "A Book\n\nCHAPTER 1. Loomings.\nCHAPTER 2. The Bag.\n\n"
    book = "CHAPTER 1. Loomings.\n\n" + "Call me Ishmael. " * 60 + "\n\nCHAPTER 2. The Bag.\n\nIt was."
    found = texts.without_front_matter(contents + book + "\n*** END OF THE BOOK ***\nLicence")
    assert found.startswith("CHAPTER 1. Loomings.\n\nCall me Ishmael.")
    assert found.rstrip().endswith("It was.")
    assert texts.without_front_matter("No chapters here.") == "No chapters here."


def test_cuts_are_even_where_a_model_may_be_cut() -> None:
    assert measure.even_cuts(range(31), 3) == [8, 15, 22]
    assert measure.even_cuts((0, 1, 2, 3, 4, 5, 20), 2) == [4, 5]
    assert measure.even_cuts((0, 6, 12, 18, 24), 3) == [6, 12, 18]
    with pytest.raises(UsageError, match="24 blocks cannot be cut 4 times"):
        measure.even_cuts((0, 6, 12, 18, 24), 4)


@pytest.mark.model
def test_the_default_codec_stays_close_to_float32(smollm2_path: Path) -> None:
    with torch.inference_mode(), measure.open_checkpoint(str(smollm2_path)) as checkpoint:
        reference = measure.LocalModel(checkpoint, measure.REFERENCE)
        ids = checkpoint.tokenizer().encode(PROSE)[:96]
        expected = reference.logits(ids)[:-1].log_softmax(dim=-1)
        exact = measure.Variant("none", reference, NONE, (8, 15, 22))
        default = measure.Variant("f8", reference, F8, (8, 15, 22))
        pieces = measure.Variant("pieces", reference, rows=32)
        for variant in (exact, default, pieces):
            variant.add(expected, ids)
    assert exact.result()["kl"] == 0
    assert 0 < default.result()["kl"] < 1e-3
    assert default.result()["same_top_token"] > 0.95
    assert abs(pieces.result()["kl"]) < 1e-6  # a KV cache changes nothing but rounding
