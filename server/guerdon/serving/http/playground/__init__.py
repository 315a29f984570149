"""A page at `/` on which people try what a server answers."""
