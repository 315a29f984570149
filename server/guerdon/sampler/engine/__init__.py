"""The policy on vLLM."""
