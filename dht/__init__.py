"""Who serves what: signed, expiring announcements and the directories that hold them.

``Directory`` is what clients and nodes program against. ``kademlia`` keeps it in a DHT over the node's own
transport, ``delegated`` asks nodes that do; ``MemoryDirectory`` is for tests and simulations.
"""
