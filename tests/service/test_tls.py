"""TLS, and clients that must show a certificate, seen from the real client."""

from __future__ import annotations

import math
import re
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from guerdon.client import TLS, AsyncRewardClient, Item, Retry, Unavailable

from .conftest import start_server

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")

ITEM = Item("a b", ["c", "d e"])
ONCE = Retry(attempts=1)


def openssl(*arguments: str | Path) -> str:
    done = subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


class Authority:
    """An authority of its own, and the certificates that it signs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.certificate = self.folder / "ca.pem"
        self._key = self.folder / "ca.key"
        openssl(
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            f"/CN={name}",
            "-keyout",
            self._key,
            "-out",
            self.certificate,
        )

    def sign(self, name: str) -> tuple[Path, Path]:
        """A certificate for a host or a client, and its key."""
        key, request = self.folder / f"{name}.key", self.folder / f"{name}.csr"
        certificate, extensions = self.folder / f"{name}.pem", self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{name}\n")
        openssl(
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            f"/CN={name}",
            "-keyout",
            key,
            "-out",
            request,
        )
        openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.certificate,
            "-CAkey",
            self._key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extensions,
            "-out",
            certificate,
        )
        return certificate, key


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "theirs")


async def score(port: int, tls: TLS | None, host: str = "localhost") -> list[list[float]]:
    async with AsyncRewardClient(f"{host}:{port}", tls=tls, retry=ONCE, timeout=20) as client:
        result = await client.score("m", [ITEM])
        streamed = [r async for r in client.score_stream("m", [ITEM])]
        assert [list(r.values) for r in streamed] == result.scores
        return result.scores


async def test_the_client_encrypts_and_checks_the_name(ours: Authority, theirs: Authority) -> None:
    certificate, key = ours.sign("localhost")
    async with start_server(tls_certificate=certificate, tls_key=key) as served:
        port = served.ports.port
        found = await score(port, TLS(ca=ours.certificate))
        assert len(found[0]) == 2
        named = TLS(ca=ours.certificate, server_name="localhost")
        assert await score(port, named, "127.0.0.1") == found
        for wrong in (None, TLS(ca=theirs.certificate), TLS()):
            with pytest.raises(Unavailable):
                await score(port, wrong)
        with pytest.raises(Unavailable):
            await score(port, TLS(ca=ours.certificate, server_name="elsewhere"))


async def test_metrics_say_when_the_certificate_ends(ours: Authority) -> None:
    certificate, key = ours.sign("localhost")
    ends = openssl("x509", "-enddate", "-noout", "-in", certificate).strip()
    context = ssl.create_default_context(cafile=str(ours.certificate))
    async with (
        start_server(tls_certificate=certificate, tls_key=key) as served,
        httpx.AsyncClient(verify=context) as http,
    ):

        async def expiry() -> float:
            text = (await http.get(f"https://localhost:{served.ports.http_port}/metrics")).text
            (line,) = re.findall(r"^guerdon_certificate_expiry\S+ (\S+)$", text, re.MULTILINE)
            return float(line)

        assert await expiry() == ssl.cert_time_to_seconds(ends.removeprefix("notAfter="))
        certificate.write_text("no certificate")
        assert math.isnan(await expiry())


async def test_clients_must_show_a_certificate_where_that_is_asked(
    ours: Authority, theirs: Authority
) -> None:
    certificate, key = ours.sign("localhost")
    good, bad = ours.sign("trainer"), theirs.sign("trainer")
    async with start_server(
        tls_certificate=certificate, tls_key=key, tls_client_ca=ours.certificate
    ) as served:
        shown = TLS(ca=ours.certificate, certificate=good[0], key=good[1])
        assert len((await score(served.ports.port, shown))[0]) == 2
        other = TLS(ca=ours.certificate, certificate=bad[0], key=bad[1])
        for refused in (TLS(ca=ours.certificate), other):
            with pytest.raises(Unavailable):
                await score(served.ports.port, refused)
        # The HTTP side asks for it too.
        url = f"https://localhost:{served.ports.http_port}/readyz"
        context = ssl.create_default_context(cafile=str(ours.certificate))
        async with httpx.AsyncClient(verify=context) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(url)
        context.load_cert_chain(*good)
        async with httpx.AsyncClient(verify=context) as http:
            assert (await http.get(url)).status_code == 200


async def test_metrics_and_probes_can_have_a_port_without_tls(ours: Authority) -> None:
    certificate, key = ours.sign("localhost")
    tls = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": ours.certificate}
    context = ssl.create_default_context(cafile=str(ours.certificate))
    context.load_cert_chain(*ours.sign("client"))
    async with (
        start_server(**tls, metrics_port=0) as served,
        httpx.AsyncClient() as stranger,
        httpx.AsyncClient(verify=context) as known,
    ):
        plain = f"http://127.0.0.1:{served.ports.metrics_port}"
        for path in ("/healthz", "/readyz"):
            assert (await stranger.get(plain + path)).status_code == 200
        assert "guerdon_ready 1.0" in (await stranger.get(plain + "/metrics")).text
        for path in ("/v1/models", "/v1/score", "/docs", "/openapi.json", "/"):
            assert (await stranger.get(plain + path)).status_code == 404
        encrypted = f"https://localhost:{served.ports.http_port}"
        with pytest.raises(httpx.TransportError):
            await stranger.get(encrypted + "/metrics")
        assert (await known.get(encrypted + "/readyz")).status_code == 200
        assert (await known.get(encrypted + "/metrics")).status_code == 404
