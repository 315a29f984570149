"""The ways to find the best answer, over a drawer and a scorer: no wire, no gRPC, no HTTP."""
