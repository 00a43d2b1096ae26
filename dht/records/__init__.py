"""Signed announcements: keys, bodies, checks, and what a keeper keeps of them. No sockets, no hivemind."""
