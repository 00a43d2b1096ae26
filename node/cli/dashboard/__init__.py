"""The live page of a swarm: as a command, and beside a serving node. Knows no models."""
