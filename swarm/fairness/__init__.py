"""What is scarce, divided among strangers: shares, queues, buckets, bounded memories. Pure; no sockets."""
