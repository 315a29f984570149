"""Makes docs/rl-reference.md from the settings, metrics and files that the code declares.

python -m tests.recipes.reference      # writes it; a test compares
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.recipes.support import KINDS

from guerdon.cli.settings_options import field_default, field_docs
from guerdon.settings import field_types, required
from guerdon.trainer.common.measuring import samples
from guerdon.trainer.rl.cli import PANELS
from guerdon.trainer.rl.report import metrics
from guerdon.trainer.rl.report import summary as report

PATH = Path(__file__).parents[2] / "docs" / "rl-reference.md"

HEAD = f"""# Reference of the reinforcement-learning recipes

What [`guerdon train {"|".join(kind.algorithm for kind in KINDS)}`](training-rl.md)
takes and writes. Made from the code by `python -m tests.recipes.reference`; a test holds it true.

## Settings

Each is a key of the TOML file and an option of the command line (`max_staleness` is
`--max-staleness`; what is true or false is `--plots` or `--no-plots`; lists are options that may
be given again). Where an algorithm's default differs, it is named.
"""


def whole() -> str:
    """The page."""
    parts = [HEAD]
    for heading, names in PANELS.items():
        parts.append(f"### {heading}\n\n" + settings_table(names))
    parts.append(
        "## metrics.jsonl\n\nA line for each step, and lines of their own for evaluations. A line "
        "has the keys that its algorithm has.\n"
    )
    for group, keys in metrics.KEYS.items():
        parts.append(f"### {group[0].upper()}{group[1:]}\n\n" + table(("key", "meaning"), keys))
    parts.append("## samples.jsonl\n\n" + table(("key", "meaning"), samples.KEYS))
    parts.append("## summary.json\n\n" + table(("key", "meaning"), report.KEYS))
    return "\n".join(parts)


def settings_table(names: Sequence[str]) -> str:
    """A row for each setting."""
    rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
    for name in names:
        kinds = [kind for kind in KINDS if name in field_types(kind)]
        only = "" if len(kinds) == len(KINDS) else f" ({', '.join(k.algorithm for k in kinds)})"
        choices = choice_of(field_types(kinds[0])[name])
        meaning = by_most({k.algorithm: field_docs(k)[name] for k in kinds}) + choices + only
        default = by_most({k.algorithm: default_of(name, k) for k in kinds})
        rows.append(f"| `{name}` | {default} | {meaning.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def choice_of(kind: Any) -> str:
    """The values that it may have, where they are few."""
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return " One of " + ", ".join(f"`{value}`" for value in typing.get_args(kind)) + "."


def default_of(name: str, kind: type[Any]) -> str:
    """As TOML has it; a dash where it must be given."""
    if name in required(kind):
        return "–"
    return written(field_default(kind, name))


def by_most(texts: Mapping[str, str]) -> str:
    """What most algorithms have, then what others have, by their names."""
    found: dict[str, list[str]] = {}
    for algorithm, text in texts.items():
        found.setdefault(text, []).append(algorithm)
    common = max(found, key=lambda text: len(found[text]))
    others = [f"{', '.join(who)}: {text}" for text, who in found.items() if text != common]
    return (" " if common.endswith(".") else "; ").join([common, *others])


def written(value: Any) -> str:
    """A default, as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", ()):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], rows: Mapping[str, str]) -> str:
    """Two columns, the first one code."""
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{key}` | {text} |" for key, text in rows.items())]) + "\n"


if __name__ == "__main__":
    PATH.write_text(whole(), encoding="utf-8")
