"""A generation's session over a route, and its repair. Knows no tokens' meaning."""
