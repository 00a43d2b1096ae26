"""Real models in every type that llama.cpp quantizes to: our logits beside llama.cpp's and transformers'."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from swarm_node.shards.checkpoint.opening import open_checkpoint
from swarm_node.shards.loading import load_backend, load_client_model
from swarm_node.shards.models.load_plan import LoadOptions
from swarm_node.swarm.errors import SwarmError
from swarm_node.swarm.types import Span

from ...lab.command_line import add_json, count, names_of, run_and_report, say, script_parser
from ...lab.prompts import MODEL
from ...lab.quality.measure import REFERENCE, Cache
from ...lab.transformers_oracle import load_transformers_model
from .wider import write_wider

FTYPES = {
    "F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q5_K_S": 16, "Q5_1": 9, "Q5_0": 8,
    "Q4_K_M": 15, "Q4_K_S": 14, "Q4_1": 3, "Q4_0": 2, "IQ4_NL": 25, "IQ4_XS": 30, "Q3_K_L": 13, "Q3_K_M": 12,
    "Q3_K_S": 11, "IQ3_M": 27, "IQ3_S": 26, "IQ3_XS": 22, "IQ3_XXS": 23, "Q2_K": 10, "Q2_K_S": 21,
    "IQ2_M": 29, "IQ2_S": 28, "IQ2_XS": 20, "IQ2_XXS": 19, "IQ1_M": 31, "IQ1_S": 24, "TQ2_0": 37, "TQ1_0": 36,
    "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41,
}  # fmt: skip
"""Kinds of files by llama.cpp's names, and their numbers in ``llama_ftype``."""
OURS = {"native": LoadOptions(dtype="float32", kernels="native"), "torch": REFERENCE}
SHOWN = ("native / f32", "torch / f32", "native / llama.cpp", "llama.cpp / f32", "torch / transformers")
TEXT = (
    "A sailing ship cannot steer straight into the wind, so it zigzags: first to one side, then to the other."
    " The keel resists the sideways push, and what remains drives it forward. In 1768, Captain James Cook"
    " left Plymouth; 3 years later he was back. def area(r): return 3.14159 * r ** 2\n\nQ: Wie heißt die"
    " Hauptstadt von Frankreich?\nA: Paris."
)
DESCRIPTION = """\
Quantizes a GGUF model with llama.cpp to each kind of file (where rows are no multiple of 256 it falls back to
other types, so files are mixed), and computes a text with it in five ways: by our C kernels and by torch, in
two spans; by llama.cpp, from the file and from the values that it writes as float32; by transformers.

  native / f32: how far our C kernels are from these exact values. It must be rounding: 1e-5 and
  less. A head of 16 bits (F16, BF16) is the exception: logits that cannot win are rough, up to 2e-3.
  KL: its mean over positions.

example:
  python3 -m venv llama && llama/bin/pip install llama-cpp-python
  scripts/study real_types --llama-python llama/bin/python --types Q4_K_M,IQ3_S
"""


class FailedError(Exception):
    """What llama.cpp could not do."""


class LlamaCpp:
    """llama.cpp in another Python's process."""

    def __init__(self, python: str) -> None:
        program = [python, str(Path(__file__).with_name("llama_cpp_side.py"))]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, task: str, **question: Any) -> None:
        """See ``llama_cpp_side``. Raises FailedError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"task": task, **question}, default=str) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"failed": f"llama.cpp ended ({self._process.wait()})"}
        if "failed" in answer:
            raise FailedError(answer["failed"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Study:
    """One model, quantized in ``folder``."""

    def __init__(self, llama: LlamaCpp, source: Path, folder: Path, tokens: int, pure: bool) -> None:
        self._llama, self._source, self._folder, self._pure = llama, source, folder, pure
        self._columns = {each.name: int(each.shape[0]) for each in gguf.GGUFReader(source).tensors}
        with open_checkpoint(str(source), client=True) as checkpoint:
            self.ids = list(checkpoint.tokenizer().encode(TEXT))[:tokens]

    def report(self, name: str, *, transformers: bool) -> dict[str, Any]:
        """What came of the kind of file ``name``; raises FailedError where llama.cpp does not write it."""
        file, values = self._folder / f"model.{name}.gguf", self._folder / "values.gguf"
        try:
            self._quantize(self._source, file, FTYPES[name], self._pure)
            self._quantize(file, values, FTYPES["F32"], False)
            found = {"llama.cpp": self._by_llama(file), "f32": self._by_llama(values)}
            report: dict[str, Any] = {"types": _types(file), "bytes": file.stat().st_size}
            values.unlink()
            for way, options in OURS.items():
                found[way], report[f"{way} holds"] = two_spans(file, self.ids, options)
            if transformers:
                found["transformers"] = by_transformers(file, self.ids)
        finally:
            file.unlink(missing_ok=True)
            values.unlink(missing_ok=True)
        pairs = [each.split(" / ") for each in SHOWN]
        report["compared"] = {
            f"{one} / {other}": difference(found[one], found[other])
            for one, other in pairs
            if one in found and other in found
        }
        return report

    def _quantize(self, source: Path, to: Path, ftype: int, pure: bool) -> None:
        self._llama.do("quantize", source=source, to=to, ftype=ftype, columns=self._columns, pure=pure)

    def _by_llama(self, file: Path) -> Tensor:
        self._llama.do("logits", model=file, ids=self.ids, to=self._folder / "logits.npy")
        return torch.from_numpy(np.load(self._folder / "logits.npy"))


def two_spans(file: Path, ids: list[int], options: LoadOptions) -> tuple[Tensor, str]:
    """(logits (tokens, vocab) of a model cut in the middle, if it can be; how its weights are held)."""
    with open_checkpoint(str(file), client=True) as checkpoint, torch.inference_mode():
        end = checkpoint.config.n_blocks
        client = load_client_model(checkpoint, options)
        x, held = torch.from_numpy(client.embed(ids)), set()
        cuts = sorted({0, end // 2, end})
        for span in map(Span, cuts, cuts[1:]):
            backend = load_backend(checkpoint, span, options, threads=torch.get_num_threads())
            held.add(backend.weights)
            x = Cache(backend, len(ids), "float32").through(x, 0, span.start, span.end)
        return torch.from_numpy(client.logits(x.numpy())), "; ".join(sorted(held))


def by_transformers(file: Path, ids: list[int]) -> Tensor:
    """Logits (tokens, vocab) of the weights that transformers dequantizes."""
    with torch.inference_mode():
        logits: Tensor = load_transformers_model(file)(torch.tensor([ids])).logits[0]
    return logits


def difference(got: Tensor, expected: Tensor) -> dict[str, float]:
    """Of logits (tokens, vocab). ``largest``: between logits less their mean, as a share of the largest.
    ``same``: the share of positions with the same best token."""
    got, expected = (each.double() - each.double().mean(-1, keepdim=True) for each in (got, expected))
    p, q = expected.log_softmax(-1), got.log_softmax(-1)
    return {
        "largest": float((got - expected).abs().max() / expected.abs().max()),
        "kl": float((p.exp() * (p - q)).sum(-1).mean()),
        "same": float((got.argmax(-1) == expected.argmax(-1)).double().mean()),
    }


def _types(file: Path) -> dict[str, int]:
    """How many matrices of each type the file has."""
    with open_checkpoint(str(file), client=True) as checkpoint:
        matrices = [info for info in checkpoint.manifest.values() if len(info.shape) > 1]
    return dict(Counter(info.qtype for info in matrices).most_common())


def measure(options: argparse.Namespace, progress: Callable[[str], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(options.model)
        if options.wider:
            source = write_wider(source, Path(folder) / "wider.gguf", options.wider)
        llama = LlamaCpp(options.llama_python)
        try:
            study = Study(llama, source, Path(folder), options.tokens, options.pure)
            report: dict[str, Any] = {"model": options.model, "tokens": len(study.ids), "files": {}}
            for name in options.types:
                progress(name)
                try:
                    report["files"][name] = study.report(name, transformers=options.transformers)
                    progress(_row(name, report["files"][name]))
                except FailedError as error:
                    report["files"][name] = {"failed": f"llama.cpp: {error}"}
                except SwarmError as error:
                    report["files"][name] = {"failed": f"refused by us: {error}"}
        finally:
            llama.close()
    return report


def show(report: dict[str, Any]) -> None:
    print(f"\n{report['model']}, {report['tokens']} tokens. Largest difference, KL, same best token:\n")
    print(f"| file | types | {' | '.join(SHOWN)} |\n|{'---|' * (2 + len(SHOWN))}")
    for name, file in report["files"].items():
        print(_row(name, file))


def _row(name: str, file: dict[str, Any]) -> str:
    if "failed" in file:
        return f"| {name} | {file['failed']} |"
    types = ", ".join(f"{number} {qtype}" for qtype, number in file["types"].items())
    cells = [
        "{largest:.1e} {kl:.1e} {same:.3f}".format_map(each) if (each := file["compared"].get(pair)) else ""
        for pair in SHOWN
    ]
    return f"| {name} | {types} | {' | '.join(cells)} |"


def main() -> int:
    parser = script_parser("study real_types", DESCRIPTION)
    parser.add_argument("--llama-python", required=True, help="a Python that has llama-cpp-python")
    parser.add_argument("--model", default=str(MODEL), help="a GGUF file (default: the demo's)")
    wider = "the first BLOCKS of a Llama, padded to rows of a multiple of 256: every matrix gets the type"
    parser.add_argument("--wider", type=count, metavar="BLOCKS", help=wider)
    parser.add_argument("--types", type=names_of(FTYPES), default=list(FTYPES), help="default: all")
    parser.add_argument("--pure", action="store_true", help="one type for all matrices, where it fits")
    parser.add_argument("--tokens", type=count, default=96, help="of the text (default: %(default)s)")
    parser.add_argument("--no-transformers", dest="transformers", action="store_false", help="leave them out")
    add_json(parser)
    options = parser.parse_args()
    return run_and_report(
        lambda: measure(options, say), show, options.json, errors=(SwarmError, FailedError, OSError)
    )


if __name__ == "__main__":
    sys.exit(main())
