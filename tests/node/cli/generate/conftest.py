"""Decoding is plain here, as in the client's own tests."""

from __future__ import annotations

from tests.client.conftest import drafting as drafting
from tests.client.conftest import trials as trials
