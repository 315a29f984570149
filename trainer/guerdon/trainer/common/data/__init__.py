"""Rows of training data: read, checked, turned into tokens, and paired."""
