"""Asking HTTP services by httpx: connections, replies of bounded size, when to ask again."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from guerdon.addresses import is_loopback

_SHOWN = 300
"""Characters of a service's own words that are shown."""


class ReplyTooLong(Exception):
    """A reply has more bytes than are read of it; the text says how many are."""


def new_client(
    url: str, key: str, *, at_once: int | None = None, ca: str | Path | None = None
) -> httpx.AsyncClient:
    """A client without a timeout of its own: each call has one.

    Redirects are not followed: what follows one would hand texts and key to whoever it names.

    Args:
        url: that will be asked.
        key: sent as `authorization: Bearer …`; empty for none.
        at_once: most connections.
        ca: PEM file of authorities, beside the system's.
    """
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(cafile=str(ca))
    headers = {"accept-encoding": "identity"}  # a reply's size is what comes over the network
    if key:
        headers["authorization"] = f"Bearer {key}"
    return httpx.AsyncClient(
        headers=headers,
        timeout=httpx.Timeout(None),
        verify=context,
        # A proxy does not know this machine's own services.
        trust_env=not is_loopback(httpx.URL(url).host),
        limits=httpx.Limits(max_connections=at_once),
    )


async def whole_reply(response: httpx.Response, most: int) -> bytes:
    """The body of a reply that was opened as a stream.

    Raises:
        ReplyTooLong: it has more bytes than `most`.
    """
    data = bytearray()
    async for part in response.aiter_raw():
        data += part
        if len(data) > most:
            raise ReplyTooLong(f"longer than {most} bytes")
    return bytes(data)


def shown(text: str, key: str) -> str:
    """A service's words in short, without the key that it may have sent back."""
    text = text.replace(key, "…") if key else text
    return " ".join(text.split())[:_SHOWN]


def retry_after(response: httpx.Response, most: float) -> float | None:
    """Seconds until it makes sense to ask again, where the reply tells them.

    Args:
        response: with the header `Retry-After`, which may also hold a date.
        most: the longest time that is believed, in seconds.
    """
    said = response.headers.get("retry-after", "")
    if not (said.isascii() and said.isdigit()):
        return None
    return min(float(said[:9]), most)
