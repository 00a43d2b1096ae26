"""When a volunteer's machine serves: hours, power, temperature, idleness. Knows no network."""
