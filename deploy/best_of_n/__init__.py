"""`make best-of-n`: what the best of n answers gain, and what they cost.

The gateway is asked held-out questions with one candidate, two, four, … and by strategies that
draw fewer tokens, with the real sampler and the demo's reward model behind it; the demo trains
that where it is not there yet. The mean reward of what the gateway serves is held against what the
scores of the sixteen candidates themselves promise for fewer (their order statistics).

What an earlier try has asked is not asked again: after a kill, run the same command.
"""
