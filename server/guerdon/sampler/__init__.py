"""The policy sampler: completions from a policy whose weights change while it serves."""
