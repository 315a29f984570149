"""Plain structured logs to standard error."""

from __future__ import annotations

import logging
import sys
import time


class _Formatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO guerdon.reward.registry: loaded …`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def set_up_logging(level: str) -> None:
    """Log to standard error; libraries speak up from WARNING on.

    Args:
        level: debug, info, warning or error; for Guerdon's own loggers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("guerdon").setLevel(level.upper())
