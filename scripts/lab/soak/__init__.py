"""A swarm of two nodes under clients of every kind, watched for leaks."""
