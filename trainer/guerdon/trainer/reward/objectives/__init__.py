"""What a reward model can learn: preference pairs, attributes of an answer, steps of a solution.

Each objective is a `RewardTask` (`objectives.task`): its data, loss, measures, and what serving
must know. The recipe around them is `guerdon.trainer.common.trl.recipe`.
"""
