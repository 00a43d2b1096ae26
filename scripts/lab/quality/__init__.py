"""What wire codecs and quantized weights cost in quality."""
