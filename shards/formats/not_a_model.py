"""What a folder or a file has in place of a model, and what makes a model of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path

from ...swarm.errors import CheckpointError
from ...swarm.names import listed, near_names

_NAMED = 3
"""A message names at most this many of the files that are missing."""
MAX_ENTRIES = 1000
"""At most this many entries of a folder are searched for names: each may cost a read of the disk."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_UNFINISHED = ("*.incomplete", "*.crdownload", "*.aria2", "*.part", "*.partial", "*.download", "*.opdownload")
"""As tools and browsers call files while they come."""
_SINGLE = "model.safetensors"
_PIPELINE = "model_index.json"
_A_MODEL = "A model is a HuggingFace directory (config.json, safetensors files) or a .gguf file."
_CONTINUE = "Run the download again: it goes on where it stopped."
_OTHER_FORMATS = {
    "*.onnx": "ONNX", "onnx": "ONNX", "openvino_*.xml": "OpenVINO", "tf_model*.h5": "TensorFlow",
    "flax_model*.msgpack": "Flax", "mlc-chat-config.json": "MLC", "*.mlpackage": "Core ML",
    "*.tflite": "TensorFlow Lite", "*.engine": "TensorRT", "*.ggml": "llama.cpp before GGUF",
}  # fmt: skip
"""Names of files, and what they are for."""
_OLDER_TOKENIZERS = ("*.model", "*.tiktoken", "vocab.*", "merges.txt", "*.tokenizer.json")
_OF_TRAINING = ("training_args.bin", "optimizer.*", "scheduler.*", "rng_state*")


def is_pointer(first: bytes) -> bool:
    """Whether Git LFS left a pointer in place of a file. ``first``: at least its first 8 bytes, if it has as
    many."""
    return len(first) >= 8 and _POINTER.startswith(first[: len(_POINTER)])


def download_hint(first: bytes) -> str:
    """The hint for a file that cannot be read. ``first``: as of ``is_pointer``."""
    if is_pointer(first):
        return "Git left a pointer in place of the file: run `git lfs pull` in its folder."
    return "Download it again."


def not_gguf_hint(path: Path, first: bytes) -> str:
    """The hint for a file that does not begin as a GGUF file. ``first``: as of ``is_pointer``."""
    return download_hint(first) if is_pointer(first) or path.suffix.lower() == ".gguf" else _A_MODEL


def no_model_error(directory: Path, lacks: str) -> CheckpointError:
    """The error for a directory without the file or files ``lacks``, by what is there instead."""
    try:
        names = file_names(directory)
    except OSError as error:
        return CheckpointError(f"cannot read {directory}: {error.strerror or error}")
    if files := _those(names, ("*.gguf",)):
        return CheckpointError(
            f"{called(directory)} is a folder with GGUF files, and holds {lacks}",
            hint=f"Give the path of a file: {directory / files[0]}",
        )
    what, hint = _found(directory, names, _unfinished(directory))
    return CheckpointError(f"{called(directory)} holds {what}{', and ' if what else ''}{lacks}", hint=hint)


def is_other_format(directory: Path) -> bool:
    """Whether a directory holds what ``no_model_error`` knows by name, and no GGUF file."""
    try:
        names = file_names(directory)
    except OSError:
        return False
    return not _those(names, ("*.gguf",)) and _found(directory, names, _unfinished(directory))[0] != ""


def is_pipeline(directory: Path) -> bool:
    """Whether a directory is one of diffusers: its folders are parts of one pipeline."""
    return (directory / _PIPELINE).is_file()


def held_instead(names: Sequence[str]) -> str:
    """What files of these names, sorted, are in place of a model; "" for nothing that is known."""
    return _found(Path(), names, "")[0]


def _found(directory: Path, names: Sequence[str], unfinished: str) -> tuple[str, str]:
    """What a directory holds in place of a model, and what to do; "" for nothing that is known.
    ``unfinished``: a file in it of a download that has not ended."""
    if files := _those(names, ("adapter_config.json", "adapter_model.*")):
        merged = _text(f"{directory}-merged")
        return f"an adapter of a model ({files[0]})", "Merge the two, and give the result: " + _python(
            "from peft import AutoPeftModelForCausalLM as M; "
            f"M.from_pretrained({_text(directory)}).merge_and_unload().save_pretrained({merged})"
        )
    if _PIPELINE in names:
        return f"a pipeline of diffusers ({_PIPELINE}), which writes no text", _A_MODEL
    if unfinished:
        return f"a download that has not ended ({unfinished})", _CONTINUE
    if files := _those(names, ("consolidated*.safetensors", "consolidated*.pth", "params.json")):
        return (
            f"a model in its maker's own format ({files[0]}), which is not read",
            "Take the same model as transformers has it (config.json, model*.safetensors), or a GGUF file.",
        )
    files = [name for name in _those(names, _PICKLES) if not _those([name], _OF_TRAINING)]
    if files and "config.json" in names:
        return f"weights as a pickle ({files[0]}), which is not read", (
            "A pickle may run any program. If you trust this one: "
            + _python(
                "from transformers import AutoModelForCausalLM as M; "
                f'M.from_pretrained({_text(directory)}, dtype="auto").save_pretrained({_text(directory)})'
            )
        )
    if files:
        return f"weights as a pickle ({files[0]}), which is not read", (
            "A pickle may run any program. Take the model as safetensors files, or as a GGUF file."
        )
    for pattern, kind in _OTHER_FORMATS.items():
        if files := _those(names, (pattern,)):
            return f"a model for {kind} ({files[0]}), which is not read", _A_MODEL
    if files := _those(names, ("*.safetensors",)):
        if "config.json" not in names:
            return f"weights ({files[0]})", "Download config.json, too: it says what the tensors mean."
        return f"weights under another name ({files[0]})", f"If it is the whole model, rename it: {_SINGLE}"
    return "", _A_MODEL


def refuse_file(path: Path) -> None:
    """CheckpointError for a file whose ending says that it is no GGUF file, or not all of one."""
    name = path.name
    if _those([name], ("*.safetensors",)):
        raise CheckpointError(f"{path} is one file of a checkpoint", hint="Give the directory that it is in.")
    if _those([name], _UNFINISHED):
        raise CheckpointError(f"{path} is a download that has not ended", hint=_CONTINUE)
    if _those([name], _PICKLES):
        raise CheckpointError(
            f"{path} is a pickle, which is not read: it may run any program",
            hint="Take the model as safetensors files, or as a GGUF file.",
        )
    for pattern, kind in _OTHER_FORMATS.items():
        if _those([name], (pattern,)):
            raise CheckpointError(f"{path} is a model for {kind}, which is not read", hint=_A_MODEL)


def lacks_error(folder: Path, missing: Sequence[str], of: str, otherwise: str) -> CheckpointError:
    """The error for a folder in which some files of a model are missing. ``of``: the files, as a message has
    them behind their number."""
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return CheckpointError(
        f"{called(folder)} lacks {len(missing)} of {of}: {', '.join(missing[:_NAMED])}{more}",
        hint=_CONTINUE if _unfinished(folder) else otherwise,
    )


def called(folder: Path) -> Path:
    """A folder as messages have it: "." says nothing."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def _unfinished(directory: Path) -> str:
    """The name of a file that a download has left unfinished in a directory; "" if there is none."""
    for folder in (directory, directory / ".cache" / "huggingface" / "download"):
        with suppress(OSError):
            if files := _those(file_names(folder), _UNFINISHED):
                return files[0]
    return ""


def file_names(directory: Path) -> list[str]:
    """The names in a directory, of its first MAX_ENTRIES entries, sorted. OSError."""
    return sorted(path.name for path in islice(directory.iterdir(), MAX_ENTRIES))


def no_path_error(text: str, beside: Sequence[str]) -> CheckpointError:
    """The error for a path at which there is nothing. ``beside``: names beside it that may be meant."""
    folder = Path(text).expanduser().parent
    near = [str(folder / name) for name in near_names(Path(text).name, beside)]
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
    """The hint for a directory without tokenizer.json: transformers makes one of the files of an older
    tokenizer, where there are any."""
    names: list[str] = []
    with suppress(OSError):
        names = file_names(directory)
    if not _those(names, _OLDER_TOKENIZERS):
        return "Download tokenizer.json, too, from where the model is from."
    saved = f"AutoTokenizer.from_pretrained({_text(directory)}).save_pretrained({_text(directory)})"
    return f"Have transformers write it: {_python(f'from transformers import AutoTokenizer; {saved}')}"


def _text(path: object) -> str:
    """As Python reads it, in the quotes that a shell leaves alone between others."""
    return json.dumps(str(path), ensure_ascii=False)


def _python(program: str) -> str:
    return f"python -c {shlex.quote(program)}"


def _those(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
