"""What our DHT nodes store, and what they believe when others answer: signed entries and nothing else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from ..swarm.errors import RemoteProtocolError
from ..swarm.membership import Membership
from .directory import TTL_S
from .entry_check import EntryCheck

logger = logging.getLogger(__name__)


class SignedRecordValidator(RecordValidatorBase):
    """Accepts what EntryCheck does.

    That refuses plain values (one of a later expiration would replace the whole dictionary), foreign subkeys
    (which would let others overwrite an owner) and far expirations (which nobody could ever replace).
    """

    def __init__(
        self,
        ttl: float = TTL_S,
        clock: Callable[[], float] = time.time,
        membership: Membership | None = None,
    ) -> None:
        self.check = EntryCheck(ttl, clock, membership)
        self.refused = 0  # entries, since the start

    def validate(self, record: DHTRecord) -> bool:
        try:
            self.check.check(record.key, record.subkey, record.expiration_time, record.value)
        except RemoteProtocolError as error:
            self.refused += 1
            logger.debug("refused a DHT entry: %s", error)
            return False
        return True

    def merge_with(self, other: RecordValidatorBase) -> bool:
        return isinstance(other, SignedRecordValidator)
