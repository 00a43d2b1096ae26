"""Answers as every API of the gateway writes them: generations that run, their tokens read into parts, and
replies that hand these to the API's writer. It knows the form of no API."""
