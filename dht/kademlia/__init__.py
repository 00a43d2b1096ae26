"""The DHT itself: who is in it, whom a node knows, how it is asked and how it asks. What lies in it is the
business of the modules around this package.

Kademlia (Maymounkov, Mazières 2002) with the defences of S/Kademlia (Baumgart, Mies 2007): ids that are
computed from proven PeerIDs and never read off the wire, a table of those who have answered, look-ups along
disjoint paths. The messages are hivemind's.
"""
