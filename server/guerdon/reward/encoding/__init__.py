"""Rendering and tokenising: from items to the tokens that a model reads."""
