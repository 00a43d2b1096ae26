"""Speculation over a wide-area network, beside plain decoding and beside what is possible."""
