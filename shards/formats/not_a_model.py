"""What a folder or a file has in place of a model, and what makes a model of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from ...swarm.errors import CheckpointError
from ...swarm.names import listed, near_names

MAX_ENTRIES = 1000
"""At most this many entries of a folder are searched for names: each may cost a read of the disk."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OF_TRAINING = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*")


def download_hint(first: bytes) -> str:
    """The hint for a file that cannot be read. ``first``: at least the first 8 bytes of the file, if it has
    as many."""
    if len(first) >= 8 and _POINTER.startswith(first[: len(_POINTER)]):
        return "Git left a pointer in place of the file: run `git lfs pull` in its folder."
    return "Download it again."


def no_model_error(directory: Path, lacks: str) -> CheckpointError:
    """The error for a directory without the file or files ``lacks``, by what is there instead."""
    try:
        names = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        return CheckpointError(f"cannot read {directory}: {error.strerror or error}")
    if "adapter_config.json" in names:
        return CheckpointError(
            f"{directory} holds an adapter of a model (adapter_config.json), and {lacks}",
            hint="Merge the two, and give the result: "
            + _python(
                "from peft import AutoPeftModelForCausalLM as M; "
                f"M.from_pretrained({_text(directory)}).merge_and_unload().save_pretrained({_text(f'{directory}-merged')})"
            ),
        )
    if files := _those(names, ("*.gguf",)):
        return CheckpointError(
            f"{directory} is a folder with GGUF files, and holds {lacks}",
            hint=f"Give the path of a file: {directory / files[0]}",
        )
    if _those(names, ("model-*.safetensors",)):
        return CheckpointError(
            f"{directory} holds parts of a model, and {lacks}",
            hint="Download the files that are missing: the index says which tensor is in which part.",
        )
    if files := [name for name in _those(names, _PICKLES) if not _those([name], _OF_TRAINING)]:
        return CheckpointError(
            f"{directory} holds weights as a pickle ({files[0]}), which is not read, and {lacks}",
            hint="A pickle may run any program. If you trust this one: "
            + _python(
                "from transformers import AutoModelForCausalLM as M; "
                f'M.from_pretrained({_text(directory)}, dtype="auto").save_pretrained({_text(directory)})'
            ),
        )
    return CheckpointError(
        f"{directory} holds {lacks}",
        hint="A model is a HuggingFace directory (config.json, safetensors files) or a .gguf file.",
    )


def no_path_error(text: str) -> CheckpointError:
    """The error for a path at which there is nothing, with names beside it that may be meant."""
    folder = Path(text).expanduser().parent
    near = [str(folder / name) for name in near_names(Path(text).name, models_in(folder))]
    return CheckpointError(
        f"there is no model at {text}",
        hint=f"Did you mean {listed(near)}?"
        if near
        else "Give a .gguf file, a HuggingFace directory, the name of a model that the swarm serves, or a "
        "hub name such as meta-llama/Llama-3.2-1B.",
    )


def models_in(folder: Path) -> list[str]:
    """Names of the GGUF files and HuggingFace directories in a folder, of its first MAX_ENTRIES entries. A
    folder that cannot be read has none."""
    try:
        entries = list(islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return []
    return sorted(path.name for path in entries if path.suffix == ".gguf" or (path / "config.json").is_file())


def tokenizer_hint(directory: Path) -> str:
    """The hint for a directory without tokenizer.json."""
    saved = f"AutoTokenizer.from_pretrained({_text(directory)}).save_pretrained({_text(directory)})"
    return f"Have transformers write it: {_python(f'from transformers import AutoTokenizer; {saved}')}"


def _text(path: object) -> str:
    """As Python reads it, in the quotes that a shell leaves alone between others."""
    return json.dumps(str(path), ensure_ascii=False)


def _python(program: str) -> str:
    return f"python -c {shlex.quote(program)}"


def _those(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
