"""The directory asked of nodes that are in the DHT, for peers that are not. Knows no Kademlia."""
