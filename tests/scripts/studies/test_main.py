"""``scripts/study``: what each study is about, and errors without tracebacks."""

from __future__ import annotations

import sys

import pytest

from scripts.studies import __main__ as studies


@pytest.mark.parametrize("name", [*studies.FILES])
def test_the_list_shows_whole_sentences(name: str) -> None:
    assert studies.summary(name).endswith(".")


def test_an_error_is_told_as_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study", "next_guesses", "/nowhere/model.gguf"])
    assert studies.main() == 3
    assert capsys.readouterr().err.startswith("error: there is no model at /nowhere/model.gguf\n       Give ")
