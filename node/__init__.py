"""One serving machine: from its weights to the sessions that clients have on it."""
