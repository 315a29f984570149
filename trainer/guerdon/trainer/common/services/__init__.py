"""Asking the sampler for completions and the reward service for their rewards."""
