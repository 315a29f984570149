"""Event files of TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path


def wait_for_later_names(folder: Path) -> None:
    """Wait until a new event file's name comes after those there are, which is how they are read.

    A name has the second in which it was made, and a process's number of event files: in one
    second the tenth comes before the ninth. One process makes both files only in tests.
    """
    last = max(int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*"))
    while int(time.time()) <= last:
        time.sleep(0.01)
