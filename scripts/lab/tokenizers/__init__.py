"""Token ids of ours, of llama.cpp and of original tokenizers, compared."""
