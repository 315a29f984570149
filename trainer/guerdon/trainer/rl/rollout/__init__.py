"""Sampling while the learner works, and publishing what it learned."""
