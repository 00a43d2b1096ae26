"""A model's certificate: the user's own, or one that came with the program."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ...swarm.errors import CheckpointError
from ...swarm.runtime.state_files import state_folder
from ...swarm.types import ModelRef
from ..formats.bounded_json import read_bytes
from .certificate import BOUNDS, Certificate, parse_certificate

logger = logging.getLogger(__name__)


def certificates_folder() -> Path:
    """The user's own: ``certificates`` in the state folder, one file a model, named by its digest."""
    return state_folder() / "certificates"


def find_certificate(model: ModelRef, widths: Sequence[int]) -> Certificate | None:
    """The certificate of a model whose rows are ``widths`` wide at its boundaries, by its digest; None where
    there is none that can be used. One that is damaged, or of another model, is told of in the log and passed
    over: models run without."""
    shipped = Path(str(files(__package__ or "") / "data"))
    for folder in (certificates_folder(), shipped):
        path = folder / f"{model.digest}.json"
        if not path.is_file():
            continue
        try:
            certificate = parse_certificate(read_bytes(path, BOUNDS.nbytes), str(path))
            if certificate.digest != model.digest or certificate.widths != tuple(widths):
                raise CheckpointError(f"{path} is the certificate of another model ({certificate.name})")
            if certificate.shortness:
                raise CheckpointError(f"{path}: {certificate.shortness}")
        except CheckpointError as error:
            logger.warning("event=certificate_unusable reason=%r", error.message)
            continue
        return certificate
    return None
