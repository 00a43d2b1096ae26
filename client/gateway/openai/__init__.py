"""OpenAI's requests and responses, field by field. Opens no connections."""
