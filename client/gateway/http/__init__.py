"""HTTP within bounds: connections, bodies, errors, admission. Knows no models."""
