"""What the reader of a boundary's rows knows of them: which codecs lose too much here, and with which scales
it wants its rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

import numpy as np

from ..codecs import int8s
from ..codecs.scales import ScaleTable
from ..errors import RemoteProtocolError
from .error_watch import HARMFUL_ERROR, REMEMBERED_S, ErrorWatch, Loss, Verdict
from .row_error import row_errors
from .row_sampler import RowSampler
from .scale_learner import ScaleLearner

logger = logging.getLogger(__name__)


class RowReader:
    """Rows are kept by ``sampler``, in any one thread, and judged by ``look``, in any other.

    ``weights``: ``usable_weights`` of the norms that read the rows. ``passed``: kinds of codecs that the
    model's certificate says are good enough. ``table``: the certificate's scales for this boundary; None:
    they are learned from the rows. ``clock`` gives seconds.
    """

    def __init__(
        self,
        weights: np.ndarray,
        clock: Callable[[], float],
        *,
        passed: Collection[str] = (),
        table: ScaleTable | None = None,
    ) -> None:
        self._squares = np.square(weights, dtype=np.float64)
        self._passed = frozenset(passed)
        self._certified = table
        self._clock = clock
        self._watch = ErrorWatch(clock)
        self._of_told = ErrorWatch(clock)  # only rows in tables that it asks for
        self._harmed_at: float | None = None
        self._learner = ScaleLearner(weights)
        self.sampler = RowSampler(len(weights), learning=table is None)
        self.coarse: tuple[str, ...] = ()
        """Kinds of codecs that lose too much here: nobody should begin with one."""

    def loss(self, kind: str) -> Loss:
        return self._watch.loss(kind)

    @property
    def errors(self) -> dict[str, float]:
        """The mean errors of rows in each kind of codec that enough of them came in."""
        losses = {kind: self.loss(kind) for kind in self._watch.kinds}
        return {kind: loss.mean for kind, loss in losses.items() if loss.groups}

    def table_for(self, group: str) -> ScaleTable | None:
        """The scales with which this reader wants rows that come from an address group; None where it does
        not know them, or they do harm."""
        if self._certified is not None:
            return self._certified
        return None if int8s.KIND in self.coarse else self._learner.table_for(group)

    def look(self) -> None:
        """Judge what was kept since the last look: ``coarse`` and the tables may change."""
        rows, sizes = self.sampler.take()
        for row in rows:
            try:
                errors = row_errors(row.codec, row.payload, 1, self._squares)
            except RemoteProtocolError:  # the step that it came with was refused, too
                continue
            self._watch.add(row.codec.kind, row.group, row.peer, errors)
            if self._learner.asks_for(row.codec.exponents):
                self._of_told.add(row.codec.kind, row.group, row.peer, errors)
        for each in sizes:
            self._learner.add(each.group, each.squares, each.rows)
        if (worst := self._of_told.worst(int8s.KIND)) > HARMFUL_ERROR:
            logger.warning("event=scales_do_harm error=%.4f", worst)
            self._harmed_at, self._of_told = self._clock(), ErrorWatch(self._clock)
            self._learner.forget()
        before = self.coarse
        self.coarse = tuple(kind for kind in self._watch.kinds if self._is_coarse(kind))
        for kind in set(self.coarse) - set(before):
            loss = self.loss(kind)
            logger.warning(
                "event=codec_too_coarse codec=%s error=%.4f beyond=%.3f groups=%d",
                kind,
                loss.mean,
                loss.beyond,
                loss.groups,
            )
        if int8s.KIND in self.coarse and int8s.KIND not in before:
            self._learner.forget()  # whoever made the scales: these are not the right ones
        self.sampler.full = self._learner.full

    def _is_coarse(self, kind: str) -> bool:
        """By the vote; int8s also for as long as votes count after learned scales did harm to anybody."""
        if kind == int8s.KIND and self._harmed_at is not None:
            if self._clock() - self._harmed_at < REMEMBERED_S:
                return True
            self._harmed_at = None
        verdict = self.loss(kind).verdict
        return verdict is Verdict.COARSE or (verdict is Verdict.FAIR and kind not in self._passed)
