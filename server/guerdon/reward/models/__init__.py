"""Which models are served: their names, their revisions, and how they are loaded."""
