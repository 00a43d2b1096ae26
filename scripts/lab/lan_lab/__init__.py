"""Machines on one LAN that find each other and share out a model, on this machine."""
