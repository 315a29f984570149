"""The best-of-n gateway: draws several answers from a policy, and gives the best by reward."""
