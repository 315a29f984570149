"""Rewards by an HTTP service of the user's own, over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.rollouts.support import settings
from tests.rollouts.test_own_functions import group, wait_until
from tests.service.test_tls import Authority
from tests.support.ports import free_port

from guerdon.client import TLS
from guerdon.settings import to_toml
from guerdon.trainer.common.errors import ServiceGone, SettingsError, TrainingError
from guerdon.trainer.common.services import http_reward
from guerdon.trainer.common.services.credentials import Credentials, reach
from guerdon.trainer.common.services.patience import ServiceRefused
from guerdon.trainer.common.services.rewards import RewardSource
from guerdon.trainer.common.services.verifiers import parse_verifier

TOKEN = "let-me-judge-4711"

Reply = tuple[int, dict[str, str], bytes]


def ok(found: Any) -> Reply:
    return 200, {}, json.dumps(found).encode()


class Service:
    """A service that answers as it is told."""

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Reply] = lambda asked: ok(len(asked["response"]))
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        self.let_go = threading.Event()
        """Ends the answers that hang."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits 40 ms behind its headers

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with service.lock:
                    service.asked.append(json.loads(body))
                    service.headers.append(
                        {name.title(): value for name, value in self.headers.items()}
                    )
                    service.now += 1
                    service.most = max(service.most, service.now)
                status, headers, reply = service.answer(service.asked[-1])
                with service.lock:
                    service.now -= 1
                self.send_response(status)
                for name, value in ({"content-length": str(len(reply))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"

    def hang(self, asked: dict[str, Any]) -> Reply:
        """No answer until the test ends."""
        self.let_go.wait()
        return ok(0)

    def first(self, *replies: Reply) -> None:
        """Answer so first, then well."""
        left = list(replies)

        def answer(asked: dict[str, Any]) -> Reply:
            with self.lock:
                return left.pop(0) if left else ok({"reward": 1.5})

        self.answer = answer


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.let_go.set()
        made.server.shutdown()
        made.server.server_close()
        thread.join()


@asynccontextmanager
async def source(*verifiers: str, **how: Any) -> AsyncIterator[RewardSource]:
    made = RewardSource((), verifiers, **({"patience": 20.0, "request_timeout": 20.0} | how))
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def test_a_service_is_asked_about_each_completion(service: Service) -> None:
    async with source(f"-2*{service.url}") as made:
        scored = await made.score(group("a", "abc", extra={"answer": 3, "tags": ["x"]}))
        assert [s.parts for s in scored.samples] == [{service.url: 1.0}, {service.url: 3.0}]
        assert [s.reward for s in scored.samples] == [-2.0, -6.0]
        await made.score(group("b", text=None))
    row = {"answer": 3, "tags": ["x"]}
    assert sorted(service.asked[:2], key=lambda asked: len(asked["response"])) == [
        {"prompt": "Why?", "response": "a", "row": row},
        {"prompt": "Why?", "response": "abc", "row": row},
    ]
    messages = [{"role": "user", "content": "Why?"}]
    assert service.asked[2:] == [{"prompt": messages, "response": "b", "row": {}}]
    assert all("Authorization" not in head for head in service.headers)


@pytest.mark.parametrize("found", [1.5, 2, {"reward": -0.25}, {"reward": 1, "why": "x"}])
async def test_a_number_or_an_object_with_one(service: Service, found: Any) -> None:
    service.answer = lambda asked: ok(found)
    async with source(service.url) as made:
        wanted = found["reward"] if isinstance(found, dict) else found
        assert await made.totals(group("a")) == [wanted]


@pytest.mark.parametrize("status", [500, 502, 503, 408, 429])
async def test_a_service_that_is_away_is_asked_again(service: Service, status: int) -> None:
    service.first((status, {"retry-after": "0"}, b"oops"), (status, {}, b"oops"))
    async with source(service.url) as made:
        assert await made.totals(group("a")) == [1.5]
        assert made.faults_survived == 1
    assert len(service.asked) == 3


async def test_the_status_counts_however_long_its_page_is(service: Service) -> None:
    page = b"x" * 100_000
    service.first((503, {}, page), (429, {}, page))
    async with source(service.url) as made:
        assert await made.totals(group("a")) == [1.5]
        service.first((401, {}, page))
        with pytest.raises(ServiceRefused, match=r"HTTP 401 \(GUERDON_VERIFIER_TOKEN"):
            await made.totals(group("a"))


async def test_a_service_that_stays_away_ends_the_run(service: Service) -> None:
    service.answer = lambda asked: (503, {}, b"")
    async with source(service.url, patience=0.3) as made:
        message = rf"^the reward at {service.url} gave no answer for 0\.3 seconds .*HTTP 503$"
        with pytest.raises(ServiceGone, match=message):
            await made.totals(group("a", "b"))


async def test_nobody_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/score"
    async with source(url, patience=0.3) as made:
        with pytest.raises(ServiceGone, match=f"the reward at {url} gave no answer for"):
            await made.totals(group("a"))


async def test_a_service_that_hangs_is_asked_again_and_given_up(service: Service) -> None:
    service.answer = service.hang
    async with source(service.url, patience=0.5, request_timeout=0.2) as made:
        with pytest.raises(ServiceGone, match=r"DEADLINE_EXCEEDED: no answer in 0\.2 seconds"):
            await made.totals(group("a"))


async def test_a_service_that_says_its_answer_slowly_is_no_answer(service: Service) -> None:
    """What counts is the whole answer: its body never comes."""
    service.answer = lambda asked: (200, {"content-length": "9"}, b"1")
    async with source(service.url, patience=0.5, request_timeout=0.2) as made:
        with pytest.raises(ServiceGone, match="DEADLINE_EXCEEDED"):
            await made.totals(group("a"))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ((200, {}, b"good!"), "it answers with no JSON: good! "),
        ((200, {}, b""), "it answers with no JSON "),
        ((200, {}, b"[" * 5000), "it answers with no JSON: "),
        ((200, {}, b"\xff\xfe\x00"), "it answers with no JSON: "),
        (ok("1.0"), "its reward: is '1.0', it must be a number"),
        (ok(True), "its reward: is True, it must be a number"),
        (ok(None), "its reward: is None, it must be a number"),
        (ok([1.0]), r"its reward: is \[1.0\], it must be a number"),
        (ok({"score": 1.0}), "its reward: is missing: "),
        (ok({"reward": None}), "its reward: is None, it must be a number"),
        ((200, {}, b"NaN"), "its reward: is nan, it must be a finite number"),
        ((200, {}, b'{"reward": 1e999}'), "its reward: is inf, it must be a finite number"),
        ((200, {}, b"1" * 400), "its reward: is 1+, it must be a finite number"),
        ((204, {}, b""), "it answers with no JSON "),
        ((400, {}, b"no prompt"), "HTTP 400: no prompt "),
        ((404, {}, b""), "HTTP 404 "),
        ((401, {}, b""), r"HTTP 401 \(GUERDON_VERIFIER_TOKEN or --verifier-token-file\)"),
        ((307, {"location": "/other"}, b""), r"it redirects \(HTTP 307\), which is not followed"),
        ((200, {}, b"[" + b" " * 100_000 + b"]"), "its answer is longer than 65536 bytes"),
    ],
)
async def test_what_is_no_reward_ends_the_run(service: Service, reply: Reply, reason: str) -> None:
    service.answer = lambda asked: reply
    async with source(service.url) as made:
        scored = group("a")
        message = rf"^the reward at {service.url} can't be had: {reason}.*\(the prompt is row 7\)$"
        with pytest.raises(ServiceRefused, match=message):
            await made.score(scored)
        assert not scored.samples[0].parts
    assert len(service.asked) == 1


async def test_so_many_are_asked_at_once_and_no_more(service: Service) -> None:
    arrived = threading.Barrier(http_reward.AT_ONCE)

    def answer(asked: dict[str, Any]) -> Reply:
        arrived.wait()  # until as many are here
        return ok(float(asked["response"]))

    service.answer = answer
    many = [str(i) for i in range(3 * http_reward.AT_ONCE)]
    async with source(service.url) as made:
        halves = [made.totals(group(*many[:20])), made.totals(group(*many[20:]))]
        found = [value for half in await asyncio.gather(*halves) for value in half]
    assert found == [float(text) for text in many]
    assert service.most == http_reward.AT_ONCE
    assert Counter(asked["response"] for asked in service.asked) == Counter(many)


async def test_its_token_is_its_own_and_shown_to_nobody_else(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("GUERDON_TOKEN", "the-samplers")
    monkeypatch.delenv("GUERDON_ADMIN_TOKEN", raising=False)
    monkeypatch.delenv("GUERDON_VERIFIER_TOKEN", raising=False)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    by_file = settings(verifier=(service.url,), verifier_token_file=str(file))
    async with source(service.url, **reach(by_file)) as made:
        await made.score(group("a"))
    monkeypatch.setenv("GUERDON_VERIFIER_TOKEN", TOKEN)
    service.first((503, {}, b""))
    async with source(service.url, **reach(settings())) as made:
        await made.score(group("a"))
        service.answer = lambda asked: (400, {}, f"you sent {TOKEN}".encode())
        with pytest.raises(TrainingError, match="you sent …") as caught:
            await made.score(group("a"))
    monkeypatch.delenv("GUERDON_VERIFIER_TOKEN")
    async with source(service.url, **reach(settings())) as made:
        with pytest.raises(TrainingError):
            await made.score(group("a"))
    sent = [head.get("Authorization") for head in service.headers]
    assert sent == [f"Bearer {TOKEN}"] * 4 + [None]
    assert TOKEN not in str(caught.value) + caplog.text + to_toml(by_file)
    assert TOKEN not in repr(Credentials.of(by_file))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")
async def test_https_with_an_authority_of_ones_own(service: Service, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("localhost"))
    service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
    url = service.url.replace("http://127.0.0.1", "https://localhost")
    trusting = Credentials(tls=TLS(ca=authority.certificate))
    async with source(url, credentials=trusting) as made:
        assert await made.totals(group("abc")) == [3.0]
    async with source(url, patience=0.3) as made:
        with pytest.raises(ServiceGone, match="certificate"):
            await made.totals(group("abc"))
    assert len(service.asked) == 1


async def test_cancelled_work_leaves_nothing_behind(service: Service) -> None:
    service.answer = service.hang
    async with source(service.url) as made:
        scoring = asyncio.create_task(made.score(group("a", "b")))
        await asyncio.to_thread(wait_until, lambda: len(service.asked) == 2)
        scoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await scoring


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("http://example.com/score", "http is for this machine alone; elsewhere https"),
        ("http://10.0.0.1/score", "http is for this machine alone"),
        ("http://localhost.example.com/", "http is for this machine alone"),
        ("https://me:secret@example.com/", "a URL with a name, a password, a query or a fragment"),
        ("https://example.com/?key=secret", "a URL with a name, a password, a query"),
        ("https://example.com/#secret", "a URL with a name, a password, a query"),
        ("https://me:secret-ä@example.com/", "a URL with a name, a password"),
        ("https://me:secret@host:99999/", "a URL with a name, a password"),
        ("https://@host/", "a URL with a name, a password"),
        ("https://me:secret@[host/", "is not https://HOST"),
        ("https:me:secret@host/", "is not https://HOST"),
        ("https:///score", "is not https://HOST"),
        ("https:", "is not https://HOST"),
        ("https://host:99999/", "is not https://HOST"),
        ("https://ho st/", "is not https://HOST"),
        ("ftp://host/", "is not one of exact"),
    ],
)
def test_addresses_that_can_not_be(spec: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"^verifier: .*{reason}") as caught:
        parse_verifier(spec)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    ["https://example.com/a/b", "https://10.0.0.1:8443", "http://[::1]:8000/", "http://localhost/"],
)
def test_addresses(spec: str) -> None:
    found = parse_verifier(f"0.5*{spec}")
    assert (found.name, found.weight) == (spec, 0.5)
