"""Steps/s of a generation when servers fail, repaired or begun anew."""
