"""HTTP clients of a server that asks other services itself."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from guerdon.addresses import is_loopback


def new_client(
    url: str, key: str, *, at_once: int | None = None, ca: Path | None = None
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
