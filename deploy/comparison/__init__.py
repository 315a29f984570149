"""`make comparison`: SFT, DPO, ORPO, RFT and PPO from one start, measured alike, in one report.

The project's preference pairs are split in two by prompt. The proxy reward model, and all that
learns from pairs, see the one half; from the pairs of the other only the held-out reward model
learns. RFT and PPO write answers of their own to questions among which are prompts of both halves,
and the proxy judges them; the questions of the evaluation are in neither.

Every step is the command that a user would type. What an earlier try finished is used again, and
what it began is gone on with: after a kill, run the same command.
"""
