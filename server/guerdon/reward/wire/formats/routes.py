"""The routes of other systems' formats, all of which score in the same way."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from guerdon.reward.counting import ScoringCall, ScoringCalls
from guerdon.reward.request_limits import FormatSettings
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.types import Dropped
from guerdon.reward.wire.formats.format import Format, FormatRequest, Json
from guerdon.reward.wire.formats.scoring import FormatScorer
from guerdon.serving.errors import InvalidRequest, Overloaded, Unavailable, WorkLost
from guerdon.serving.http.bodies import method_name
from guerdon.serving.http.routes import parse_json, while_connected
from guerdon.serving.lifecycle import Phase
from guerdon.serving.status import describe

_PAUSE = 0.5
"""Seconds until a held request is tried again, where the error does not say."""
_MODELS = "/models/"
_ONE_CALLER = 0.8
"""Part of the waiting requests that one caller alone may have."""


class FormatRoutes:
    """Serves formats, each at its paths.

    Args:
        formats: of one path, the first that reads a body.
        most_waiting: requests that wait at a time; one caller alone gets four fifths of them.
        most_waiting_bytes: of the bodies of those.
    """

    def __init__(
        self,
        scorer: Scorer,
        calls: ScoringCalls,
        format_scorer: FormatScorer,
        settings: FormatSettings,
        formats: Iterable[type[Format[Any]]],
        *,
        most_waiting: int,
        most_waiting_bytes: int,
    ) -> None:
        self._scorer = scorer
        self._calls = calls
        self._format_scorer = format_scorer
        self._waiting = _Waiting(most_waiting, most_waiting_bytes)
        self._formats: dict[str, list[Format[Any]]] = {}
        for kind in formats:
            format_ = kind(settings)
            for path in filter(format_.serves, format_.paths):
                self._formats.setdefault(path, []).append(format_)

    def add_to(self, app: FastAPI, native: Collection[str], others: Collection[str] = ()) -> None:
        """Add them to an app, each also below `/models/NAME`.

        Args:
            native: paths of the native routes, which do not lie there and stay theirs.
            others: paths of further routes, which do.
        """
        for path, formats in self._formats.items():
            if path in native:
                continue  # the native route hands over what `reads` tells it to
            summary = "; ".join(str(type(each).__doc__).partition("\n")[0] for each in formats)
            for method in sorted({method for each in formats for method in each.methods}):
                app.add_api_route(
                    path, self.serve, methods=[method], summary=summary, tags=["other formats"]
                )
        paths = [path for path in (*self._formats, *others) if path not in native]
        app.add_middleware(ModelInPath, paths=paths, native=native)

    def reads(self, path: str, value: Json) -> bool:
        """Whether a body at a native path is of one of the formats."""
        formats = self._formats.get(path, ())
        return isinstance(value, dict) and any(each.reads(value) for each in formats)

    async def serve(self, request: Request) -> Response:
        """Answer a request, in the way of its format also where it fails."""
        path = request.scope["path"]
        format_ = self._formats[path][0]
        try:
            with self._calls.track(method_name(path), None) as call:
                data = await request.body()
                size, kind = len(data), request.headers.get("content-type", "")
                value = await self._scorer.off_loop(size, parse_json, data, kind)
                del data  # the request may wait for minutes
                if not isinstance(value, dict):
                    raise InvalidRequest("body", "must be a JSON object")
                format_ = next((f for f in self._formats[path] if f.reads(value)), format_)
                self._check_counts(value)
                body, asked = await self._scorer.off_loop(size, self._read, format_, value)
                del value
                if not asked.items:
                    return JSONResponse(asked.if_empty)
                model = request.scope.get(ModelInPath.KEY) or asked.model
                work = self._hold(call, format_, asked, model, size)
                scored = await while_connected(request, work)
                reply_size = max(size, scored.reply_size)
                reply = partial(_reply, format_, body, asked.dropped)
                return await self._scorer.off_loop(reply_size, reply, scored)
        except Exception as error:
            if isinstance(error, InvalidRequest):
                error = format_.renamed(error)
            status = describe(error)
            return JSONResponse(format_.error(status), format_.code(status), status.http_headers())

    def _read(self, format_: Format[Any], value: Json) -> tuple[Any, FormatRequest]:
        body = format_.read(value)
        asked = format_.ask(body)
        if asked.items or asked.if_empty is None:
            self._format_scorer.check(asked)
        return body, asked

    async def _hold(
        self, call: ScoringCall, format_: Format[Any], asked: FormatRequest, model: str, size: int
    ) -> Scored:
        """Score, and try again through overload for as long as the format's client waits.

        Args:
            size: of the body, in bytes.
        """
        lifecycle, losses = self._calls.lifecycle, 0
        if format_.hold_seconds:
            call.deadline = time.monotonic() + format_.hold_seconds
        while True:
            try:
                with lifecycle.admit():
                    return await self._format_scorer.score(call, format_, asked, model)
            except (Overloaded, Unavailable) as error:
                pause = error.retry_after if isinstance(error, Overloaded) else _PAUSE
                losses += isinstance(error, WorkLost)
                left = 0.0 if call.deadline is None else call.deadline - time.monotonic()
                # What ended two engines would end a third, with everybody's work.
                if left <= 0 or losses > 1 or lifecycle.phase is Phase.DRAINING:
                    raise
                with self._waiting.one(call.caller.key, size, error), suppress(TimeoutError):
                    pause *= random.uniform(1.0, 1.5)  # noqa: S311 - not all come back at once
                    await asyncio.wait_for(lifecycle.wait_draining(), min(pause, left))

    def _check_counts(self, value: Json) -> None:
        """Refuse a body with too long lists, before a model looks at each entry."""
        for name, entries in value.items():
            if entries and isinstance(entries, list) and name != "input":  # which may be ids
                self._format_scorer.check_count(name, len(entries))


def _reply(
    format_: Format[Any], body: Any, unread: Collection[Dropped], scored: Scored
) -> Response:
    """The reply; a header says what the model was not shown, for which no format has a place."""
    dropped = {part for scores in scored.items for one in scores for part in one.dropped}
    said = ", ".join(sorted({*dropped, *unread}))
    headers = {"x-guerdon-dropped": said} if said else None
    return JSONResponse(format_.reply(body, scored), headers=headers)


class _Waiting:
    """Bounds the requests that wait for their next try: each holds a connection and its body."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._callers: Counter[str] = Counter()
        self._bytes = 0

    @contextmanager
    def one(self, caller: str, size: int, error: Exception) -> Iterator[None]:
        """Count a request that waits; raises its error where there is no room for it."""
        alone = self._callers[caller] >= _ONE_CALLER * self._most
        if alone or self._callers.total() >= self._most or self._bytes + size > self._most_bytes:
            raise error
        self._callers[caller] += 1
        self._bytes += size
        try:
            yield
        finally:
            self._callers[caller] -= 1
            self._callers += Counter()  # forgets callers of none
            self._bytes -= size


class ModelInPath:
    """ASGI middleware: takes the model's name out of `/models/NAME/…`.

    Args:
        paths: what may follow the name.
        native: what may not.
    """

    KEY = "guerdon.model"

    def __init__(self, app: ASGIApp, paths: Collection[str], native: Collection[str]) -> None:
        self._app = app
        self._paths = paths
        self._known = (*paths, *native)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as one for the rest of its path."""
        if scope["type"] == "http" and scope["path"].startswith(_MODELS):
            after = scope["path"].removeprefix(_MODELS)
            path = max((p for p in self._known if after.endswith(p)), key=len, default="")
            name = after.removesuffix(path)
            if path in self._paths and name:
                scope = {**scope, self.KEY: name, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
