"""Turns encoded items into logits: packed where it can, padded where it must."""
