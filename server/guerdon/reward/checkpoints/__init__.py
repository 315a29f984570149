"""Which folders may be served, and how they are loaded."""
