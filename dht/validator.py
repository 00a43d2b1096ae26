"""What our DHT nodes store, and what they believe when others answer: signed entries and nothing else."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from ..swarm.errors import RemoteProtocolError
from .directory import TTL_S
from .envelope import is_signed, unseal

MAX_CLOCK_SKEW_S = 3.0
"""How far a node's clock may be from ours. hivemind's own bound, too."""

EXPIRATION_SLACK_S = 2 * MAX_CLOCK_SKEW_S
"""Two nodes may each be off by MAX_CLOCK_SKEW_S from a third, in opposite directions."""

_REMEMBERED = 4096  # signatures found good: a reader gets each entry from several replicas

logger = logging.getLogger(__name__)


class SignedRecordValidator(RecordValidatorBase):
    """Accepts an entry only under its signer's own subkey, unaltered, of bounded size and lifetime.

    That refuses plain values (one of a later expiration would replace the whole dictionary), foreign subkeys
    (which would let others overwrite an owner) and far expirations (which nobody could ever replace). An
    expired entry is not refused here: the DHT drops it, and refusing it would discard its dictionary.
    """

    def __init__(self, ttl: float = TTL_S, clock: Callable[[], float] = time.time) -> None:
        self._max_life = ttl + EXPIRATION_SLACK_S
        self._clock = clock
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self.refused = 0  # entries, since the start

    def validate(self, record: DHTRecord) -> bool:
        try:
            self._check(record)
        except RemoteProtocolError as error:
            self.refused += 1
            logger.debug("refused a DHT entry: %s", error)
            return False
        return True

    def merge_with(self, other: RecordValidatorBase) -> bool:
        return isinstance(other, SignedRecordValidator)

    def _check(self, record: DHTRecord) -> None:
        owner, body, signature = unseal(record.key, record.subkey, record.expiration_time, record.value)
        life = record.expiration_time - self._clock()
        if life > self._max_life:
            raise RemoteProtocolError(f"{owner} wants an entry kept for {life:.0f} s")
        digest = hashlib.sha256(
            b"".join((record.key, owner.encode(), record.expiration_time.hex().encode(), b"/", record.value))
        ).digest()
        if digest in self._good:
            self._good.move_to_end(digest)
            return
        if not is_signed(record.key, owner, record.expiration_time, body, signature):
            raise RemoteProtocolError(f"an entry under the name of {owner} that it has not signed")
        self._good[digest] = None
        if len(self._good) > _REMEMBERED:
            self._good.popitem(last=False)
