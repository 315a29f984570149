"""Certificates and tokens that change while the server runs."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from guerdon.client import TLS, AsyncRewardClient, Item, Retry, Unauthenticated, Unavailable

from .conftest import Harness, start_server
from .test_tls import Authority

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")

ONCE = Retry(attempts=1)


async def score(port: int, tls: TLS | None = None, token: str = "") -> None:
    async with AsyncRewardClient(
        f"localhost:{port}", tls=tls, token=token or None, retry=ONCE, timeout=20
    ) as client:
        await client.score("m", [Item("a b", ["c"])])


async def reloads(http: httpx.AsyncClient, port: int, what: str, outcome: str) -> float:
    text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
    (line,) = (
        line
        for line in text.splitlines()
        if line.startswith(f'guerdon_reloads_total{{outcome="{outcome}",what="{what}"}}')
    )
    return float(line.rsplit(" ", 1)[1])


async def until_reloaded(served: Harness, what: str, outcome: str, times: int) -> None:
    """Ask for a reload, as SIGHUP does, and wait for its outcome."""
    served.server._reloads.ask()
    async with httpx.AsyncClient() as http:
        while await reloads(http, served.ports.metrics_port or 0, what, outcome) < times:
            pass


async def test_certificates_and_authorities_are_read_again(tmp_path: Path) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    files = {
        "tls_certificate": tmp_path / "served.pem",
        "tls_key": tmp_path / "served.key",
        "tls_client_ca": tmp_path / "clients.pem",
    }

    def put(authority: Authority) -> None:
        certificate, key = authority.sign("localhost")
        for source, target in zip(
            (certificate, key, authority.certificate), files.values(), strict=True
        ):
            shutil.copy(source, target)

    def client_of(authority: Authority) -> TLS:
        certificate, key = authority.sign("client")
        return TLS(ca=authority.certificate, certificate=certificate, key=key)

    def context_of(tls: TLS) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(tls.ca))
        context.load_cert_chain(str(tls.certificate), str(tls.key))
        return context

    def mixed(trusted: Authority, shown: Authority) -> TLS:
        certificate, key = shown.sign("client")
        return TLS(ca=trusted.certificate, certificate=certificate, key=key)

    put(old)
    async with start_server(metrics_port=0, **files) as served:

        async def check(good: TLS, *bad: TLS) -> None:
            """Both protocols take the one and refuse the others."""
            url = f"https://localhost:{served.ports.http_port}/readyz"
            await score(served.ports.port, good)
            async with httpx.AsyncClient(verify=context_of(good)) as http:
                assert (await http.get(url)).status_code == 200
            for tls in bad:
                with pytest.raises(Unavailable):
                    await score(served.ports.port, tls)
                async with httpx.AsyncClient(verify=context_of(tls)) as http:
                    with pytest.raises(httpx.TransportError):
                        await http.get(url)

        await check(client_of(old), client_of(new))
        put(new)
        await until_reloaded(served, "tls", "reloaded", 1)
        await check(client_of(new), client_of(old), mixed(new, old))
        files["tls_key"].write_text("no key")
        await until_reloaded(served, "tls", "failed", 1)
        await check(client_of(new), client_of(old))
        put(old)  # seen without being asked
        while True:
            with contextlib.suppress(Unavailable):
                await score(served.ports.port, client_of(old))
                break
        await check(client_of(old), client_of(new))


async def test_tokens_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with start_server(metrics_port=0, token_file=file) as served:
        await score(served.ports.port, token="first")
        file.write_text("second")
        await until_reloaded(served, "tokens", "reloaded", 1)
        await score(served.ports.port, token="second")
        with pytest.raises(Unauthenticated):
            await score(served.ports.port, token="first")
        for bad in ("", None):
            file.unlink() if bad is None else file.write_text(bad)
        await until_reloaded(served, "tokens", "failed", 1)
        await score(served.ports.port, token="second")
        with pytest.raises(Unauthenticated):
            await score(served.ports.port)


async def test_sighup_reloads(served: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    before: Any = signal.getsignal(signal.SIGHUP)
    assert served.server._reloads._watching is not None
    served.server._reloads.stop()
    asked = []
    monkeypatch.setattr(served.server._reloads, "ask", lambda: asked.append(1))
    served.server._reloads.start(signals=True)
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        while not asked:
            await served.still_serves()
    finally:
        signal.signal(signal.SIGHUP, before)
