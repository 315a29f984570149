"""Scoring items: what gRPC and HTTP have in common, in terms of the domain alone."""
