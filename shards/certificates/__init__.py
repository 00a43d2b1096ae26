"""What wire codecs cost a model, measured beforehand: certificates, found by the model's digest. They are
read here, and made only by scripts/certify."""
