"""Reinforcement learning against remote services: rollouts, buffer, learner, publishing."""
