"""Training data made of what a policy says and what rewards say of it."""
