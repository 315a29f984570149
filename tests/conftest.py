"""What holds for every test."""

from __future__ import annotations

import os

# Tests run real servers and trainers beside each other on few cores: threads that wait must
# sleep, or they take the cores from those who work. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
