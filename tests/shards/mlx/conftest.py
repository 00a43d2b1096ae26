"""A small model for several files of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory, hf_llama_in: Any) -> Path:
    """A model whose matrices divide into all groups of MLX."""
    folder = tmp_path_factory.mktemp("wide")
    return hf_llama_in(
        folder, hidden_size=128, intermediate_size=256, num_hidden_layers=2, scale=lambda cols: cols**-0.5
    )
