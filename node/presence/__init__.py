"""What a node tells the swarm of itself, and hears of its neighbours. Knows no sessions."""
