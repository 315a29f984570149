"""A server's process: ports, life from start to drain, reloads, logs."""
