"""What is done alike around TRL's trainers: settings, a guarded loss, the order of rows."""
