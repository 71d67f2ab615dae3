"""Episodes on disk: written down, checked, read, and put into a replay buffer."""
