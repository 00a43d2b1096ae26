"""The command line of every script: its help, and what it says to wrong input."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module

import pytest

from scripts.studies import __main__ as studies
from tests import ROOT

LABS = ("bench", "chaos", "demo", "fuzz", "lan_lab", "pictures", "quality", "soak", "tokenizers", "wan_lab")
SAID = {
    "bench": "--parts",
    "chaos": "Exit code",
    "divergence": "undisturbed",
    "failure_rates": "Exit code",
    "quality": "--text",
    "soak": "--minutes",
    "speculation": "token for token",
    "wan_lab": "Needs Linux and root",
}


def ended_with(name: str, words: list[str], patch: pytest.MonkeyPatch) -> object:
    """The exit code of a script that ends at its command line."""
    patch.setattr(sys, "argv", [name, *words])
    main = partial(studies.main_of, name)
    if name in LABS:
        is_package = (ROOT / "scripts" / "lab" / name).is_dir()
        main = import_module(f"scripts.lab.{name}{'.__main__' if is_package else ''}").main
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("name", [*LABS, *studies.FILES])
def test_help_is_plain(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended_with(name, ["--help"], monkeypatch) == 0
    usage = f"usage: scripts/{name if name in LABS else f'study {name}'}"
    assert capsys.readouterr().out.startswith(usage)


@pytest.mark.parametrize("name", LABS)
def test_the_file_that_people_run_starts_it(name: str) -> None:
    assert (ROOT / "scripts" / name).read_text().endswith(f'lab.{name} "$@"\n')


@pytest.mark.parametrize(("name", "word"), SAID.items())
def test_help_says_what_matters(
    name: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended_with(name, ["--help"], monkeypatch)
    assert word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words", "said", "code"),
    [
        ("bench", ["--parts", "speed"], "speed", 2),
        ("bench", ["--nodes", "31"], "30", 2),
        ("bench", ["--repeat", "0"], "0", 2),
        ("chaos", ["--kills", "0"], "'0'", 2),
        ("chaos", ["--faults", "thunder"], "'thunder' is no kind of fault", 2),
        ("chaos", ["--replicas", "1"], "--replicas", 2),
        ("divergence", ["--ways", "nothing"], "nothing", 2),
        ("divergence", ["--tokens", "1"], "--tokens", 2),
        ("failure_rates", ["--rates", "2"], "rates", 2),
        ("failure_rates", ["--steps", "many"], "'many'", 2),
        ("fuzz", ["--only", "nothing"], "'nothing'", 2),
        ("fuzz", ["--run", "nothing", "file"], "'nothing'", 2),
        ("quality", ["--window", "1"], "--window", 2),
        ("quality", ["--text", "/no/such/file"], "cannot read", 1),
        ("quality", ["--model", "/no/such", "--text", str(ROOT / "scripts/quality")], "/no/such", 3),
        ("soak", ["--minutes", "none"], "'none'", 2),
        ("speculation", ["--round-trip", "no"], "--round-trip", 2),
        ("wan_lab", ["bench", "--conditions", "7"], "7", 2),
        ("wan_lab", ["bench", "--modes", "direct"], "direct", 2),
        ("wan_lab", ["demo", "--schedule", "3s explode"], "explode", 2),
        ("wan_lab", ["shell", "--rtt", "soon"], "soon", 2),
        ("wan_lab", ["spec", "--parts", "poems"], "poems", 2),
        ("wan_lab", ["spec", "--rates", "100mbit,fast"], "fast", 2),
    ],
)
def test_wrong_input_is_named(
    name: str,
    words: list[str],
    said: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ended_with(name, words, monkeypatch) == code
    assert said in capsys.readouterr().err


def test_studies_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["study"])
    assert studies.main() == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == list(studies.FILES)
    assert all(len(line.split()) > 4 for line in lines)
    monkeypatch.setattr(sys, "argv", ["study", "nothing"])
    assert studies.main() == 2
    assert "'nothing'" in capsys.readouterr().err
