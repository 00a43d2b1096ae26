"""Pages for browsers: plain files, and the door that serves them. Knows no models and no swarm."""
