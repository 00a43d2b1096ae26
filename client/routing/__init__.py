"""Which route to take: what nodes announce, what this client measured, whom it avoids. Opens no sessions."""
