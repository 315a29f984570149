"""A server's process: its command, its ports, its run, reloads."""
