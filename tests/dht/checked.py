"""Entries as the DHT carries them, put to the check."""

from __future__ import annotations

from hivemind.dht.validation import DHTRecord

from swarm_node.dht.records.entry_check import EntryCheck
from swarm_node.swarm.errors import RemoteProtocolError


def accepts(check: EntryCheck, record: DHTRecord) -> bool:
    """Whether anybody stores or believes it."""
    try:
        check.check(record.key, record.subkey, record.expiration_time, record.value)
    except RemoteProtocolError:
        return False
    return True
