"""HTTP within bounds: server, connections, bodies, errors, admission. Knows no models."""
