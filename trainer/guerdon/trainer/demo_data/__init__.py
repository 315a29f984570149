"""The project's own small preference data: the rows, the rules that judged them, the script."""
