"""`make best-of-n`: what the best of n answers gain, and what they cost.

The gateway is asked held-out questions with one candidate, two, four, …, by speculative rejection,
and by a cascade of two reward models, with the real sampler and the demo's reward model behind it;
the demo trains that where it is not there yet, and the cascade's small model is trained here on how
that one ranks the policy's own answers. The mean reward of what the gateway serves is held against
what the scores of sixteen candidates themselves promise for fewer (their order statistics).

What an earlier try has asked or trained is not done again: after a kill, run the same command.
"""
