"""Sessions that clients have on a node: opened, fed, forwarded, replayed. Announces nothing."""
