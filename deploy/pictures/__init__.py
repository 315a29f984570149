"""`make pictures`: the pictures of README and docs, from runs that are there.

`make demo`, `make comparison` and `make best-of-n` leave the runs. The dashboard's picture is made
of Prometheus' answers to the dashboard's own queries, about the demo's reward model under load; it
needs Debian's `prometheus`. The pictures of the report and of the playground need a Chromium; those
of the playground need no run, since their models are tiny and random.
"""
