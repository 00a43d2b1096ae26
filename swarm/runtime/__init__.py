"""What a process needs to run: tasks, event loop, state files, compiled C. Knows no peers and no models."""
