"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every time, so that a run tells of the change and not of chance; to look for new ones:
# HYPOTHESIS_PROFILE=explore scripts/test
settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

ROOT = Path(__file__).resolve().parent.parent
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real model, from $SWARM_NODE_TEST_MODEL or where ``scripts/test`` puts it."""
    path = Path(os.environ.get("SWARM_NODE_TEST_MODEL") or ROOT / ".models" / MODEL_FILE)
    if not path.is_file():
        pytest.fail(f"{path} is missing; scripts/test installs it")
    return path
