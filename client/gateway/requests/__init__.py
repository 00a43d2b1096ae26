"""Requests as every API of the gateway makes them: their fields read, and turned into prompts and options. It
knows the field names of no API, and sends nothing."""
