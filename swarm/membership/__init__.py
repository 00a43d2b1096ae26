"""Membership of a swarm: keys, invitations, proofs on every connection. Knows no models."""
