"""From items to scores, in terms of the domain alone."""
