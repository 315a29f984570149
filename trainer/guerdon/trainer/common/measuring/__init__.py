"""Measures and their noise, signs of reward hacking, samples to read, and helpers for pictures."""
