"""What a key of a step's line in metrics.jsonl means."""

from __future__ import annotations

from guerdon.trainer.rl.report.metrics import KEYS


def describe(key: str) -> str | None:
    """What a key means; None when it is unknown."""
    table = {name: text for group in KEYS.values() for name, text in group.items()}
    heads = [name.removesuffix("NAME") for name in table if name.endswith("/NAME")]
    named = [head for head in heads if key.startswith(head)]  # a name may hold slashes itself
    return table.get(key) or (table[f"{named[0]}NAME"] if named else None)
