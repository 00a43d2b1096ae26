"""A LAN that configures itself, on this machine: network namespaces on one switch, with links and processors
of their own. Needs Linux and root.

  scripts/lan_lab             the whole story, about three minutes
  scripts/lan_lab --json -    its figures for machines

Four machines start `swarm-node serve --model NAME` at once. One of them has the model's file; none has an
address of another, and `--memory` stands for how much each has. A guest asks for the same name. Then a faster
machine joins while an answer is being made, and is killed in the middle of another.
"""

from __future__ import annotations

import sys
from typing import Any

from ..command_line import add_json, run_and_report, say, script_parser
from ..wan_lab.kernel import LabUnavailableError
from ..wan_lab.network import why_not_here
from .story import Story
from .tables import print_story


def main() -> int:
    parser = script_parser("lan_lab", __doc__)
    add_json(parser)
    arguments = parser.parse_args()

    def run() -> dict[str, Any]:
        if reason := why_not_here():
            raise LabUnavailableError(reason)
        with Story(say) as story:
            return story.tell()

    return run_and_report(run, print_story, arguments.json, errors=(LabUnavailableError, ValueError, OSError))


if __name__ == "__main__":
    sys.exit(main())
