"""Activations as bytes: quantized, packed, measured. The only room of ``swarm`` that imports torch."""
