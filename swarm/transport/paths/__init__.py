"""One transport made of several: which path to a peer is tried first. It knows no message, and only
``direct``'s addresses by their mark."""
