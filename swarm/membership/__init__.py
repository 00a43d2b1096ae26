"""Who belongs to a swarm: keys, invitations, proofs on every connection. Knows no models."""
