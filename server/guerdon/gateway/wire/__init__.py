"""The gateway on the wire: OpenAI's API, what callers ask of it, and what it answers."""
