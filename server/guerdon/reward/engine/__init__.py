"""Turns encoded items into logits: packed where it can, padded where it must.

Import from the modules: importing this package alone loads nothing heavy.
"""
