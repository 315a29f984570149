"""Alignment without reinforcement learning: SFT, DPO and ORPO, by TRL's trainers."""
