"""Plain structured logs to standard error."""

from __future__ import annotations

import logging
import sys
import time


class _Formatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO guerdon.reward.models.registry: loaded …`."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


def set_up_logging(level: str, *, access: bool = False) -> None:
    """Log to standard error; libraries speak up from WARNING on.

    Args:
        level: debug, info, warning or error; for Guerdon's own loggers.
        access: whether every call is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("guerdon").setLevel(level.upper())
    logging.getLogger("guerdon.audit").setLevel(logging.INFO)  # whatever the rest says
    logging.getLogger("guerdon.access").setLevel(logging.INFO if access else logging.WARNING)


class RateLimit(logging.Filter):
    """Lets each message of a logger through a few times in a while, and says what it left out.

    Args:
        most: how often in `seconds`, for each message (its text before arguments are put in).
    """

    def __init__(self, *, most: int, seconds: float) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        self._windows: dict[str, tuple[float, int]] = {}
        """When the window of each message began, and how often it came since."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        now = time.monotonic()
        began, count = self._windows.get(str(record.msg), (now, 0))
        key = str(record.msg)
        if now - began >= self._seconds:
            if count > self._most:
                record.msg = f"{record.msg} (and {count - self._most} times more before)"
            began, count = now, 0
        self._windows[key] = (began, count + 1)
        return count < self._most
