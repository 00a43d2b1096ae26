"""Ten thousand simulated nodes that come and go for a day."""
