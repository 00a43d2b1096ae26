"""Stand-ins for parts that tests do without: nodes, swarms, models, clocks and terminals."""
