"""Evaluations of what is served."""
