"""What one block of a model computes, in frozen types that every backend and every cost estimate reads.
It knows no file and no library: families fill these types in, backends compute them."""
