"""Kinds of reward: how logits become scores."""
