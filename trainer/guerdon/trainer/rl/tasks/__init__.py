"""Prompts for runs that need no data of one's own: see README.md beside this file."""
