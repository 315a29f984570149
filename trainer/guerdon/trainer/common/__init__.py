"""What every recipe of the trainer uses."""
