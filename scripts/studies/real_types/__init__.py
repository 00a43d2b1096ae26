"""Files of every type that llama.cpp's quantizer writes, computed by it, by transformers and by us."""
