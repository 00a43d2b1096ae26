"""``models`` and ``plan``: what is here, what it means, what would be served. Serves nothing."""
