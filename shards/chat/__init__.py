"""Chat templates: rendered in a confined process, with control tokens told from text. Knows no tokenizer."""
