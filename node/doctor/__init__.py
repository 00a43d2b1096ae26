"""What is wrong with this machine as a node, found out by trying. It announces nothing."""
