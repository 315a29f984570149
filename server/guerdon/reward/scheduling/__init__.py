"""Who gets in, what is computed next, and the thread that computes it."""
