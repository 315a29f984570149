"""Who may call: TLS, tokens, callers and their limits, refusals from headers alone, audit."""
