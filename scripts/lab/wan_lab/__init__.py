"""A wide-area network on this machine: machines in network namespaces, links as slow and bad as asked."""
