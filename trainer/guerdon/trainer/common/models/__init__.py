"""Language models: loaded, measured in memory, and saved as they are served and published."""
