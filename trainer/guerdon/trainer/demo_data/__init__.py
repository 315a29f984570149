"""The project's own small preference data: the rows, their rules, the script."""
