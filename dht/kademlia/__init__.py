"""The directory kept in a Kademlia DHT: who is in it, how it is asked, what it keeps. Speaks hivemind's
messages, and is the only room here that imports hivemind. Of peers outside the DHT it knows nothing.
"""
