"""What every client's program does: asks as the cases say, and prints a line of JSON for each.

python ask_CLIENT.py CASES

A case has the `url`, the `key` and the `model`; `messages` or a `prompt`; and may have `seed`, `n`,
`stream`, `tools`, `body` (keys of no parameter of the client's) and `headers`.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

Case = dict[str, Any]


def sampling(case: Case) -> Case:
    """The parameters that a case gives."""
    return {key: case[key] for key in ("seed", "n") if key in case}


def ask_all(ask: Callable[[Case], dict[str, Any]]) -> None:
    """Ask by `ask`, which returns `texts` and what else is told; an error is told by its class."""
    for case in json.loads(sys.argv[1]):
        try:
            found = ask(case)
        except Exception as error:
            found = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(found))
