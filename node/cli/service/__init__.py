"""``service``: commands that the system starts, as units of systemd and as launchd's jobs. Runs no node
itself."""
