"""The command line: one room for commands of a kind. The only room that joins client and node."""
