"""Certificates and tokens read again while the server runs: on SIGHUP, and when a file changes.

What can't be used leaves in force what was before, is logged, and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Counter

from guerdon.serving.access.callers import Callers, read_tokens
from guerdon.serving.config import ServerSettings
from guerdon.serving.process.listening import Listener
from guerdon.settings import SettingsError

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0
"""How often the files are looked at. A mounted secret changes without a signal."""


@dataclass(frozen=True)
class Reloadable:
    """Something that is read from files."""

    files: tuple[Path, ...]
    reload: Callable[[], None]
    """Puts what the files hold now in force. Raises `SettingsError`, and changes nothing then."""


class Reloads:
    """Reads parts of the settings again. Used on one event loop.

    Args:
        parts: by what metrics and logs call them.
        counter: of reloads by `what` and `outcome`.
    """

    def __init__(self, parts: Mapping[str, Reloadable], counter: Counter) -> None:
        self._parts = parts
        self._counter = counter
        self._asked = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._seen = {what: _versions(part.files) for what, part in parts.items()}
        for what in parts:
            for outcome in ("reloaded", "failed"):
                counter.labels(what, outcome)

    def start(self, *, signals: bool) -> None:
        """Watch the files in the background.

        Args:
            signals: whether SIGHUP reloads; it would end the process otherwise.
        """
        if signals:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.ask)
        self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Watch no more."""
        if self._watching is not None:
            self._watching.cancel()

    def ask(self) -> None:
        """Reload everything soon, changed or not."""
        logger.info("reading certificates and tokens again")
        self._asked.set()

    async def _watch(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            for what, part in self._parts.items():
                found = _versions(part.files)
                if asked or found != self._seen[what]:
                    self._seen[what] = found
                    self._reload(what, part)

    def _reload(self, what: str, part: Reloadable) -> None:
        if not part.files:
            return
        try:
            part.reload()
        except SettingsError as error:
            logger.error("%s: %s; what was before stays in force", what, error)
            self._counter.labels(what, "failed").inc()
        else:
            logger.info("%s: read again", what)
            self._counter.labels(what, "reloaded").inc()


def new_reloads(
    settings: ServerSettings, callers: Callers, listener: Listener, counter: Counter
) -> Reloads:
    """The tokens and certificates of a server."""

    def reload_tokens() -> None:
        callers.replace(read_tokens(settings))

    certificates = settings.tls.files if settings.tls is not None else ()
    parts = {
        "tokens": Reloadable(settings.token_files, reload_tokens),
        "tls": Reloadable(certificates, listener.reload_tls),
    }
    return Reloads(parts, counter)


def _versions(files: Iterable[Path]) -> list[tuple[int, int, int] | None]:
    """What changes with a file, links followed; None for one that is not there."""
    return [_version(file) for file in files]


def _version(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
