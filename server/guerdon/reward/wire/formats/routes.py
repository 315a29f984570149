"""The routes of other systems' formats, all of which score in the same way."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from guerdon.reward.call_metrics import ScoringCalls
from guerdon.reward.format_settings import FormatSettings
from guerdon.reward.scoring.scorer import Scored, Scorer
from guerdon.reward.wire.formats.format import Asked, Format, Json
from guerdon.reward.wire.formats.scoring import FormatScorer
from guerdon.serving.errors import InvalidRequest, Overloaded, Unavailable
from guerdon.serving.http.bodies import method_name
from guerdon.serving.http.routes import parse_json, validated, while_connected
from guerdon.serving.process.lifecycle import Phase
from guerdon.serving.status import describe

_PAUSE = 0.5
"""Seconds until a held request is tried again, where the error does not say."""
_MOST_KEYS = 256
"""Most keys of an object: what a policy was asked and answered has thirty and more."""
_MODELS = "/models/"


class FormatRoutes:
    """Serves formats, each at its paths.

    Args:
        formats: of one path, the first that reads a body.
    """

    def __init__(
        self,
        scorer: Scorer,
        calls: ScoringCalls,
        format_scorer: FormatScorer,
        settings: FormatSettings,
        formats: Iterable[type[Format[Any]]],
    ) -> None:
        self._scorer = scorer
        self._calls = calls
        self._format_scorer = format_scorer
        self._formats: dict[str, list[Format[Any]]] = {}
        for kind in formats:
            format_ = kind(settings)
            for path in format_.paths:
                self._formats.setdefault(path, []).append(format_)

    def add_to(self, app: FastAPI) -> None:
        """Add them to an app, each also below `/models/NAME`."""
        for path, formats in self._formats.items():
            summary = "; ".join(str(type(each).__doc__).partition("\n")[0] for each in formats)
            app.add_api_route(
                path, self._serve, methods=["POST"], summary=summary, tags=["other formats"]
            )
        app.add_middleware(ModelInPath, paths=self._formats)

    async def _serve(self, request: Request) -> Response:
        """Answer a request, in the way of its format also where it fails."""
        formats = self._formats[request.url.path]
        format_ = formats[0]
        method = method_name(request.url.path)
        try:
            try:
                data = await request.body()
                kind = request.headers.get("content-type", "")
                value = await self._scorer.off_loop(len(data), parse_json, data, kind, _MOST_KEYS)
                self._check_counts(value)
                format_ = next((each for each in formats if each.reads(value)), format_)
                body = await self._scorer.off_loop(len(data), validated, format_.body, value)
                asked = format_.ask(body)
                if asked.items or asked.if_empty is None:
                    self._format_scorer.check(asked)
            except InvalidRequest:
                with self._calls.track(method, None):
                    raise
            if not asked.items:
                return JSONResponse(asked.if_empty)
            model = request.scope.get(ModelInPath.KEY) or asked.model
            scored = await while_connected(request, self._hold(format_, method, asked, model))
            return JSONResponse(format_.reply(body, scored))
        except Exception as error:
            if isinstance(error, InvalidRequest):
                error = format_.renamed(error)
            status = describe(error)
            return JSONResponse(format_.error(status), format_.code(status), status.http_headers())

    async def _hold(self, format_: Format[Any], method: str, asked: Asked, model: str) -> Scored:
        """Score, and try again through overload for as long as the format's client waits."""
        deadline = time.monotonic() + format_.hold_seconds if format_.hold_seconds else None
        lifecycle = self._calls.lifecycle
        while True:
            try:
                return await self._score(format_, method, asked, model, deadline)
            except (Overloaded, Unavailable) as error:
                pause = error.retry_after if isinstance(error, Overloaded) else _PAUSE
                pause *= random.uniform(1.0, 1.5)  # noqa: S311 - not all come back at once
                draining = lifecycle.phase is Phase.DRAINING
                if deadline is None or draining or time.monotonic() + pause >= deadline:
                    raise
            with suppress(TimeoutError):
                await asyncio.wait_for(lifecycle.wait_draining(), pause)

    async def _score(
        self,
        format_: Format[Any],
        method: str,
        asked: Asked,
        model: str,
        deadline: float | None,
    ) -> Scored:
        with self._calls.serve(method, deadline) as call:
            return await self._format_scorer.score(call, format_, asked, model)

    def _check_counts(self, value: Json) -> None:
        """Refuse a body with too long lists, before a model looks at each entry."""
        if not isinstance(value, dict):
            raise InvalidRequest("body", "must be a JSON object")
        for name, entries in value.items():
            if isinstance(entries, list) and entries and not isinstance(entries[0], int):
                self._format_scorer.check_count(name, len(entries))


class ModelInPath:
    """ASGI middleware: takes the model's name out of `/models/NAME/…`.

    Args:
        paths: what may follow the name.
    """

    KEY = "guerdon.model"

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as one for the rest of its path."""
        if scope["type"] == "http" and scope["path"].startswith(_MODELS):
            name, slash, rest = scope["path"].removeprefix(_MODELS).partition("/")
            path = slash + rest
            if name and path in self._paths:
                scope = {**scope, self.KEY: name, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
