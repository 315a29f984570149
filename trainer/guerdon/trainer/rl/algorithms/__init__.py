"""One short module per algorithm, over the shared pure losses."""
