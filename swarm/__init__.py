"""How peers speak, find each other, and are chosen. Knows no models' weights and no files of models."""
