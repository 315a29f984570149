"""Memory that is freed and allocated again is not taken from the system anew."""

from __future__ import annotations

import subprocess
import sys

import pytest

PAGES = 10_000
PROGRAM = f"""
import resource, sys
from guerdon.reward.engine.malloc import give_back_freed_memory, keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray({PAGES} * 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
again = faults()
give_back_freed_memory()
print(again, faults())
"""


@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_until_it_is_given_back(kept: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, "kept" if kept else "default"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    again, given_back = map(int, done.stdout.split())
    assert (again < PAGES / 10) == kept
    assert given_back >= PAGES * 0.9
