"""What speculative decoding brings on a route with a round trip."""
