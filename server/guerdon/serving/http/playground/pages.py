"""The routes of the playground: a page at `/`, and its style and scripts.

What several pages hold stands once, in a file that they include. The files are read once, when the
server starts. They hold nothing secret and are served without a token; the page asks the service's
own routes, with the token that its user types.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent
_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}
_INCLUDE = re.compile(r"<!-- include ([a-z]+\.html) -->\n")
_HEADERS: Final = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",  # no text becomes markup
        )
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # a page and scripts of two versions would not fit
}


def add_playground(app: FastAPI, page: Literal["rank", "sample"]) -> None:
    """Serve the playground.

    Args:
        app: gets its routes.
        page: ranks answers by the reward server's `/v1/rank`, or samples ranked ones by the
            gateway's `/v1/chat/completions`.
    """
    whole = _page(f"{page}.html")
    assets = {
        path.name: (path.read_text(), _TYPES[path.suffix])
        for path in _FOLDER.iterdir()
        if path.suffix in _TYPES
    }

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return _reply(whole, "text/html")

    @app.get("/playground/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in assets:
            raise HTTPException(404)
        return _reply(*assets[name])


def _page(name: str) -> str:
    """A page with what it includes."""
    return _INCLUDE.sub(lambda found: _page(found[1]), (_FOLDER / name).read_text())


def _reply(text: str, media_type: str) -> Response:
    return Response(text, media_type=media_type, headers=_HEADERS)
