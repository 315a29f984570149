"""The services that the gateway stands in front of: a policy, and reward servers."""
