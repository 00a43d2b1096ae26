"""Speed and memory of a local swarm, beside transformers and llama.cpp."""
