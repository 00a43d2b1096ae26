"""HuggingFace directories: config.json, safetensors, MLX's quantization. Knows no GGUF."""
