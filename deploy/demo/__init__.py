"""`make demo`: the whole way from preference pairs to a policy that was trained on them.

Every step is the command that a user would type, run as a process of its own; they meet only
over gRPC. What an earlier demo finished is used again: `make demo DEMO_ARGS=--fresh` does all
of it anew.
"""
