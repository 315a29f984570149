"""Evaluations of policies: sampled, scored, measured."""
