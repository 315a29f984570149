"""Kinds of reward: how logits become scores.

    sequence     one number for a response
    attributes   several numbers, and their weighted sum
    process      a number at each step, and what they amount to
    ensemble     several models' scores, and how far they part
    implicit     what a policy and its reference make of the response: β·(log π − log π_ref)
    verdict      what a language model says when it is asked about the response: yes against no

Each is a `RewardModel` (`guerdon.reward.types`). A new kind (a verifier, a custom head) is
one more class here and one more line in `load`.
"""

from guerdon.reward.kinds.load import load_model

__all__ = ["load_model"]
