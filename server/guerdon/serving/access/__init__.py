"""Who may call: callers and their limits, refusals from headers alone, audit."""
