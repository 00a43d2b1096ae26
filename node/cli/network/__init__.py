"""``status`` and ``invite``: a swarm seen from outside, and the way into it. Serves nothing."""
