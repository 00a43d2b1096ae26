"""Packages that only some features need, and how a person installs them."""

from __future__ import annotations


def install_extra(extra: str) -> str:
    """The command for an extra of pyproject.toml; for a checkout, as the package is on no index yet."""
    return f'pip install -e ".[{extra}]"'
