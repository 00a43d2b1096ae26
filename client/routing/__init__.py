"""Which route to take: what nodes announce, what this client measured, which peers it avoids. Opens no
sessions."""
