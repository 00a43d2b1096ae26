"""What the machine tells of itself."""

from __future__ import annotations

import subprocess
import sys
import time

from swarm_node.node.volunteering.machine_state import MachineReader, own_s


def test_what_its_children_compute_is_not_of_others() -> None:
    """A daemon that passes on activations must not make its own node rest."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = own_s()
        deadline = time.monotonic() + 30.0
        while own_s() - before < 0.3:
            assert time.monotonic() < deadline, "a busy child counts for nothing"
            time.sleep(0.02)
        assert time.process_time() < own_s()
    finally:
        child.kill()
        child.wait()


def test_a_state_is_read_whatever_the_machine_has() -> None:
    state = MachineReader().read()
    assert state.others_load is None or 0 <= state.others_load <= 1
    assert state.input_idle_s is None or state.input_idle_s >= 0
    assert state.on_mains in (True, False, None)
    assert state.temperature_c is None or -100 < state.temperature_c < 200
