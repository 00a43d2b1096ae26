"""What one client may take of a node: admission, quotas, use. Pure; knows no engine and no sockets."""
