"""RFT: sample once, keep the good completions, fine-tune on them."""
