"""A LAN that configures itself, on this machine: network namespaces on one switch, with links and processors
of their own. Needs Linux and root.

  scripts/lan_lab             the whole story, about three minutes
  scripts/lan_lab --json -    its figures for machines

Four machines start `swarm-node serve --model NAME` at once. One of them has the model's file; none has an
address of another, and `--memory` stands for how much each has. A guest asks for the same name. Then a faster
machine joins while an answer is being made, and is killed in the middle of another.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

from ..local_swarm import ProcessFailedError
from ..report import run_and_report
from ..wan_lab.kernel import LabUnavailableError
from ..wan_lab.network import why_not_here
from .story import Story
from .tables import console, print_story


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/lan_lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE (- is standard output)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception, which takes everything down

    def run() -> dict[str, Any]:
        with Story(lambda text: console.print(f"  {text}", style="dim", markup=False)) as story:
            return story.tell()

    try:
        if reason := why_not_here():
            raise LabUnavailableError(reason)
        report = run_and_report(run, print_story, arguments.json, console)
    except KeyboardInterrupt:
        return 130
    except (LabUnavailableError, ProcessFailedError, ValueError, OSError) as error:
        console.print(f"error: {error}", markup=False)
        return 1
    return report if isinstance(report, int) else 0


if __name__ == "__main__":
    sys.exit(main())
