"""The command line: one module a command. The only room that joins client and node."""
