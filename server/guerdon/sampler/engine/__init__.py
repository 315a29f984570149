"""The policy on vLLM: drawing completions, and taking new weights whole or not at all."""
