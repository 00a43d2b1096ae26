"""``doctor``: what is wrong here, and what to do. It only looks, and serves nothing."""
