"""How several workers share the tests: by files, and whole swarms beside other tests rather than each other.

A whole swarm is half a dozen processes with heartbeats and time limits; two of them on two cores are a load
that no test means. So one worker takes the files of whole swarms and the others take the rest; who has
nothing left helps out. A file stays with one worker, which starts its swarm once.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from xdist.scheduler import LoadScopeScheduling

SWARMS = "tests/swarms/"
LONGEST = tuple(
    f"{SWARMS}{name}.py"
    for name in (
        "answers/test_exact_tokens",
        "answers/test_many_streams",
        "failures/test_chaos",
        "failures/test_network_survives",
        "failures/test_soak",
        "failures/test_taking_over",
        "networks/test_copied_identity",
    )
)
"""Of few tests and more than half a minute: begun early, so that no worker is left alone with one."""


class OneSwarm(LoadScopeScheduling):
    """Files by their number of tests, largest first; see above for who takes which."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::", 1)[0]

    def _assign_work_unit(self, node: Any) -> None:
        wanted = node is self.nodes[0]
        longest = (scope for scope in LONGEST if wanted and scope in self.workqueue)
        others = (scope for scope in self.workqueue if scope.startswith(SWARMS) == wanted)
        if (chosen := next(chain(longest, others), None)) is not None:
            self.workqueue.move_to_end(chosen, last=False)
        super()._assign_work_unit(node)
