"""The families that are served: a row each, and the table of them all. Data and small expressions only; what
several rows share is in the room above."""
