"""Which models are loaded: names, revisions, aliases, and leases on them.

A request resolves one revision when it is admitted and holds a lease on it until
its reply is made; an unloaded revision leaves the tables at once and its memory
when the last lease is given back. All tables change on the event loop, without an
await between the first change and the last, so every request sees one whole state.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from guerdon.reward.models.loader import Loader, LoadThreads
from guerdon.reward.models.revision import Revision, ServedModel
from guerdon.reward.types import ModelInfo
from guerdon.serving.errors import (
    CheckpointRefused,
    Interrupted,
    InvalidRequest,
    NotFound,
    Unsupported,
)

logger = logging.getLogger(__name__)

MIN_PREFIX = 8
"""Fewest characters of a revision that may stand for the whole."""

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class RegistryObserver(Protocol):
    """Told what happens to models, on the event loop."""

    def model_loaded(self, name: str, outcome: str, seconds: float) -> None:
        """An attempt to load ended: `outcome` is loaded, refused, failed or cancelled."""
        ...

    def models_changed(self, revisions: list[Revision]) -> None:
        """The loaded revisions, or which of them are current, changed."""
        ...

    def model_closed(self, info: ModelInfo, *, last: bool) -> None:
        """An unloaded revision's work has ended; `last`: its name serves nothing any more."""
        ...


class Registry:
    """The loaded models of a server.

    Args:
        loader: makes a model of a path.
        observer: told of loads and changes.
        wait_idle: waits until the engine holds no work of a revision's key.
    """

    def __init__(
        self,
        loader: Loader,
        observer: RegistryObserver,
        wait_idle: Callable[[str], Awaitable[None]],
    ) -> None:
        self._wait_idle = wait_idle
        self._loads = LoadThreads(loader)
        self._loading: dict[asyncio.Task[Any], str] = {}
        self._observer = observer
        self._revisions: dict[str, dict[str, Revision]] = {}
        self._current: dict[str, str] = {}
        self._aliases: dict[str, str] = {}
        self._closers = ThreadPoolExecutor(1, thread_name_prefix="close-model")
        self._tasks: set[asyncio.Task[Any]] = set()

    def resolve(self, spec: str) -> Revision:
        """The revision that a request for `name`, an alias or `name@revision` goes to.

        Raises:
            InvalidRequest: the spec is empty, or a revision's prefix is too short or ambiguous.
            NotFound: there is no such model or revision.
        """
        if not spec:
            raise InvalidRequest("model", "is required")
        name, at, revision = spec.partition("@")
        name = self._aliases.get(name, name)
        known = self._revisions.get(name)
        if known is None:
            raise NotFound(self._no_such_model(name))
        if not at:
            return known[self._current[name]]
        return known[self._match(name, revision, "model")]

    def infos(self) -> list[tuple[Revision, tuple[str, ...]]]:
        """Every revision and its name's aliases, ordered by name, then load time."""
        return [
            (revision, self.aliases(name))
            for name in sorted(self._revisions)
            for revision in self._by_age(name)
        ]

    def aliases(self, name: str) -> tuple[str, ...]:
        """The aliases that point to a name, sorted."""
        return tuple(sorted(a for a, target in self._aliases.items() if target == name))

    def canonical(self, spec: str) -> str | None:
        """The model's name behind a spec, or None when there is none; never raises."""
        name = spec.partition("@")[0]
        name = self._aliases.get(name, name)
        return name if name in self._revisions else None

    def name_at(self, path: str) -> str | None:
        """The one name whose current revision was loaded from a path, if there is one."""
        names = [
            name
            for name, key in self._current.items()
            if self._revisions[name][key].path.rstrip("/") == path.rstrip("/")
        ]
        return names[0] if len(names) == 1 else None

    @property
    def loading(self) -> bool:
        """Whether a checkpoint is being loaded in a thread, for whomever."""
        return self._loads.running > 0

    async def load(self, name: str, path: str, *, promote: bool = False) -> Revision:
        """Load a checkpoint as a revision; the first of its name becomes current.

        Loading what is loaded already changes nothing but, when asked, what is current.
        Cancelling this, and unloading the name, end the load.

        Raises:
            InvalidRequest: the name or path cannot be.
            NotFound: there is nothing at the path.
            CheckpointRefused: it would give wrong scores; the text says why.
            Unsupported: the name is taken by an alias.
            Overloaded: too many loads are under way.
            Interrupted: the name was unloaded meanwhile.
        """
        _check_name("name", name)
        if not path:
            raise InvalidRequest("path", "is required")
        task = self._keep(self._load(name, path, promote))
        self._loading[task] = name
        task.add_done_callback(self._loading.pop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Interrupted(f"the load of {name!r} was ended: it was unloaded") from None
            task.cancel()  # the caller has left
            raise

    async def unload(self, name: str, revision: str = "") -> list[str]:
        """Take revisions out of service, wait for their leases, free their memory.

        Without a revision, loads of the name that are under way are ended too.

        Returns:
            The revisions that were unloaded; none when only loads were ended.

        Raises:
            NotFound: no such model or revision.
            Unsupported: it is the current revision and there are others.
        """
        if not revision and self._end_loads(name) and name not in self._revisions:
            return []
        known = self._require(name)
        if revision:
            found = self._match(name, revision, "revision")
            if found == self._current[name] and len(known) > 1:
                raise Unsupported(
                    f"{found[:12]} is the current revision of {name!r}; promote another one first"
                )
            gone = [known.pop(found)]
        else:
            gone = self._by_age(name)
            known.clear()
        if not known:
            self._forget(name)
        self._changed()
        await asyncio.gather(*(asyncio.shield(self._keep(self._retire(r))) for r in gone))
        return [r.info.revision for r in gone]

    def promote(self, name: str, revision: str) -> tuple[Revision, str]:
        """Make a loaded revision the one that its name serves.

        Returns:
            The revision that serves now, and the name of the one that did before.

        Raises:
            NotFound: no such model or revision.
        """
        known = self._require(name)
        if not revision:
            raise InvalidRequest("revision", "is required")
        found = self._match(name, revision, "revision")
        previous = self._current[name]
        self._current[name] = found
        self._changed()
        logger.info("promoted %s: %s -> %s", name, previous[:12], found[:12])
        return known[found], previous

    def set_alias(self, alias: str, name: str) -> None:
        """Point an alias at a model's name.

        Raises:
            InvalidRequest: the alias is a model's name, or cannot be a name.
            NotFound: no such model.
        """
        _check_name("alias", alias)
        if alias in self._revisions:
            raise InvalidRequest("alias", f"{alias!r} is the name of a model")
        self._require(name)
        self._aliases[alias] = name
        self._changed()
        logger.info("alias %s -> %s", alias, name)

    def delete_alias(self, alias: str) -> None:
        """Remove an alias.

        Raises:
            NotFound: no such alias.
        """
        if not alias:
            raise InvalidRequest("alias", "is required")
        if self._aliases.pop(alias, None) is None:
            raise NotFound(f"there is no alias {alias!r}")
        self._changed()
        logger.info("alias %s removed", alias)

    def retire_later(self, name: str, revision: str) -> None:
        """Take a revision that is not current out of service without waiting for its leases."""
        gone = self._revisions[name].pop(revision)
        self._changed()
        self._keep(self._retire(gone))

    async def close(self) -> None:
        """Free every model, whoever still uses it. The registry is of no use afterwards."""
        for task in self._tasks:
            task.cancel()
        models = [r.model for known in self._revisions.values() for r in known.values()]
        self._revisions.clear()
        loop = asyncio.get_running_loop()
        for model in models:
            await loop.run_in_executor(self._closers, model.close)
        self._closers.shutdown(wait=False, cancel_futures=True)

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that lives on when its first caller has left."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, name: str, path: str, promote: bool) -> Revision:
        self._refuse_alias(name)
        model = await self._load_in_thread(name, path)
        try:
            self._refuse_alias(name)  # one may have been set meanwhile
        except Unsupported:
            self._closers.submit(model.close)
            raise
        return self._add(name, path, model, promote=promote)

    async def _load_in_thread(self, name: str, path: str) -> ServedModel:
        start = time.monotonic()
        outcome = "failed"
        try:
            model = await self._loads.load(path, name)
            outcome = "loaded"
        except asyncio.CancelledError:
            outcome = "cancelled"
            logger.info("the load of %s was ended", name)
            raise
        except (CheckpointRefused, NotFound) as error:
            outcome = "refused"
            logger.warning("refused to load %s: %s", name, error)
            raise
        finally:
            self._observer.model_loaded(name, outcome, time.monotonic() - start)
        info = model.info
        cached = info.prefix_cache_tokens
        logger.info(
            "loaded %s@%s in %.1f s: %s %s, %s%s%s%s",
            name,
            info.revision_label,
            time.monotonic() - start,
            info.architecture or info.base_model,
            info.kind.value,
            f"{info.dtype} on {info.device}, " if info.device else "",
            info.compute_mode.value,
            f" ({info.compute_mode_reason})" if info.compute_mode_reason else "",
            f", prefix cache of {cached:,} tokens" if cached else "",
        )
        return model

    def _add(self, name: str, path: str, model: ServedModel, *, promote: bool) -> Revision:
        known = self._revisions.setdefault(name, {})
        key = model.info.revision
        if key in known:
            self._closers.submit(model.close)  # the same weights are being served already
        else:
            known[key] = Revision(model, path)
        if promote or name not in self._current:
            self._current[name] = key
        self._changed()
        return known[key]

    async def _retire(self, revision: Revision) -> None:
        await revision.wait_free()
        await self._wait_idle(revision.key)  # a caller who left may have left work in a batch
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._closers, revision.model.close)
        info = revision.info
        known = self._revisions.get(info.name, {})
        if info.revision not in known:  # it may have been loaded again meanwhile
            self._observer.model_closed(info, last=not known)
        logger.info("unloaded %s@%s", info.name, info.revision_label)

    def _end_loads(self, name: str) -> bool:
        """End the loads of a name; whether there were any."""
        found = [task for task, loaded in self._loading.items() if loaded == name]
        for task in found:
            task.cancel()
        return bool(found)

    def _changed(self) -> None:
        for name, known in self._revisions.items():
            for key, revision in known.items():
                revision.current = key == self._current[name]
        self._observer.models_changed([r for r, _ in self.infos()])

    def _forget(self, name: str) -> None:
        del self._revisions[name], self._current[name]
        for alias in self.aliases(name):
            del self._aliases[alias]

    def _require(self, name: str) -> dict[str, Revision]:
        if not name:
            raise InvalidRequest("name", "is required")
        known = self._revisions.get(name)
        if known is None:
            raise NotFound(self._no_such_model(name))
        return known

    def _match(self, name: str, revision: str, field: str) -> str:
        known = self._revisions[name]
        if revision in known:
            return revision
        if len(revision) < MIN_PREFIX:
            raise InvalidRequest(
                field, f"a revision needs at least {MIN_PREFIX} characters, it has {len(revision)}"
            )
        found = [key for key in known if key.startswith(revision)]
        if not found:
            raise NotFound(f"model {name!r} has no revision {revision[:80]!r}")
        if len(found) > 1:
            raise InvalidRequest(field, f"{revision!r} begins {len(found)} revisions of {name!r}")
        return found[0]

    def _by_age(self, name: str) -> list[Revision]:
        return sorted(self._revisions[name].values(), key=lambda r: r.loaded_at)

    def _refuse_alias(self, name: str) -> None:
        if name in self._aliases:
            raise Unsupported(f"{name!r} is an alias of {self._aliases[name]!r}")

    def _no_such_model(self, name: str) -> str:
        known = [*self._revisions, *self._aliases]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"there is no model {name[:80]!r}{hint}"


def _check_name(field: str, name: str) -> None:
    if not name:
        raise InvalidRequest(field, "is required")
    if not _NAME.fullmatch(name):
        raise InvalidRequest(
            field,
            "must begin with a letter or digit, hold only those and . _ / -, "
            "and have at most 128 characters",
        )
