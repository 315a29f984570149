"""What a person sees of a reinforcement-learning run."""
