"""The learner: algorithms, losses, advantages, and the policy as it is computed."""
