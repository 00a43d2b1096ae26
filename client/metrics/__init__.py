"""Figures in the forms that Prometheus reads. Knows no swarm and no answers, only numbers and their names."""
