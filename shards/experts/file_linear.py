"""Linears whose weights lie in a file, in a form that can be packed without decoding it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...swarm.errors import UnsupportedModelError
from ..formats.files.mapped_file import MappedFile, place_in_file
from ..kernels.library import address
from ..kernels.linear import ActivationPrecision, file_form, file_struct, padded_bias

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..formats.raw_tensor import RawTensor

    Floats = NDArray[np.float32]


class SnFileRows(ctypes.Structure):
    """``sn_file_rows`` of ``csrc/expert_store.h``."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
        ("fd", ctypes.c_int32),
        ("may_change", ctypes.c_int32),
    )


class FileLinear:
    """The rows of all ``raws`` as one linear, held in ``LoadPlan.forms``. ``struct``: without weights.

    ``parts``: the file of each, and where its rows lie there; the file's descriptor is still missing.
    UnsupportedModelError where a weight would have to be decoded or rounded, or is no part of a file.
    """

    def __init__(
        self,
        raws: Sequence[RawTensor],
        bias: Floats | None,
        forms: Sequence[str],
        precision: ActivationPrecision,
    ) -> None:
        for raw, form in zip(raws, forms, strict=True):
            if file_form(raw.qtype) != form:
                raise UnsupportedModelError(
                    f"{raw.name} is {raw.qtype} and held as {form}: it cannot stay in the file",
                    hint="Serve fewer blocks, or a GGUF file with experts of types Q2_K to Q8_0, IQ4, MXFP4, "
                    "with --quantize auto.",
                )
        self.struct = file_struct(raws, precision)
        self._bias = None if bias is None else padded_bias(bias)
        self.struct.bias = None if self._bias is None else address(self._bias)
        self.parts = [_rows_in_file(raw) for raw in raws]
        self.nbytes = 0 if self._bias is None else self._bias.nbytes


def is_packable(raws: Sequence[RawTensor], forms: Sequence[str]) -> bool:
    """Whether these would be a ``FileLinear`` if they were in a file, row by row."""
    return [file_form(raw.qtype) for raw in raws] == list(forms)


def can_stay(raws: Sequence[RawTensor], forms: Sequence[str], precision: ActivationPrecision) -> bool:
    """Whether these are a ``FileLinear``."""
    try:
        FileLinear(raws, None, forms, precision)
    except UnsupportedModelError:
        return False
    return True


def _rows_in_file(raw: RawTensor) -> tuple[MappedFile, SnFileRows]:
    stored = raw.stored
    first, step = 0, 1
    if raw.row_order is not None and len(raw.row_order):
        first, steps = int(raw.row_order[0]), np.diff(raw.row_order)
        step = int(steps[0]) if len(steps) else 1
        if step < 1 or (steps != step).any():
            raise UnsupportedModelError(f"the rows of {raw.name} do not lie in order in the file")
        stored = stored[first::step][: len(raw.row_order)]
    place = place_in_file(stored)
    rows, row_bytes = stored.shape
    if place is None or stored.strides[1] != 1 or stored.strides[0] < row_bytes:
        raise UnsupportedModelError(f"{raw.name} does not lie in the file as it is used")
    file, offset = place
    return file, SnFileRows(offset, stored.strides[0], rows, row_bytes, -1, file.grows)
