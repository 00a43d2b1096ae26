"""Files on the disk, mapped, and the tensors that lie in them. Knows no format."""
