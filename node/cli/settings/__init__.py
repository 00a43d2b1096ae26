"""``settings``: options from a file and from variables, and what shells complete, all from the parser. Runs
no node."""
