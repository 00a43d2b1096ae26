"""That scipy's optimizers are not imported with hivemind, and are there for who uses them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from swarm_node.swarm.runtime.lazy_scipy import make_lazy

make_lazy()
make_lazy()
import hivemind.dht.node

assert "scipy.optimize._optimize" not in sys.modules, "it was imported after all"

import scipy.optimize
from scipy.optimize import linprog, minimize

assert list(linprog([1], A_ub=[[-1]], b_ub=[-1]).x) == [1]
assert scipy.optimize.minimize is minimize
assert sys.modules["scipy.optimize"].minimize is minimize
make_lazy()
assert sys.modules["scipy.optimize"].minimize is minimize
import hivemind.averaging.load_balancing as balancing

assert balancing.scipy.optimize.linprog is linprog
print("good")
"""


@pytest.mark.slow
def test_hivemind_without_optimizers() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert done.stdout == "good\n", done.stderr
