"""Benchmarks: `make bench`, or `python -m tests.bench NAME …`.

They print ratios of things measured in turn in one run, so that a noisy machine moves
both sides. They assert nothing; `docs/performance.md` keeps what they said.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `guerdon serve reward` has it; before torch
