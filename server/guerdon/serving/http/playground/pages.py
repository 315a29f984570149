"""The routes of the playground: a page at `/`, and its style and scripts.

The files are read once, when the server starts. They hold nothing secret and are served without a
token; the page asks the service's own routes, with the token that its user types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.exceptions import HTTPException

_FOLDER = Path(__file__).parent
_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
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


def add_playground(app: FastAPI) -> None:
    """Serve the playground, whose page ranks by `/v1/rank` and lists models by `/v1/models`."""
    files = {
        path.name: (path.read_bytes(), _TYPES[path.suffix])
        for path in sorted(_FOLDER.iterdir())
        if path.suffix in _TYPES
    }

    def reply(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=_HEADERS)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return reply("page.html")

    @app.get("/playground/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        return reply(name)
