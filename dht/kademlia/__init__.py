"""The directory kept in a Kademlia DHT: its peers, its requests, its entries. Speaks hivemind's messages, and
is the only room here that imports hivemind. Of peers outside the DHT it knows nothing.
"""

from ...swarm.runtime.lazy_hivemind import make_lazy

make_lazy()
