"""Judges: rewards by asking a language model behind an OpenAI-compatible endpoint."""
