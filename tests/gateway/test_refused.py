"""What is refused before a route has it is told as OpenAI's clients read errors."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import openai
import pytest

from guerdon.serving.http import bodies

from .support import QUESTION, Gateway, start_gateway

CHAT = "/v1/chat/completions"
TOKENS = """
[callers.app]
token = "app-key"
roles = ["sample"]
[callers.other]
token = "other-key"
roles = ["score"]
"""


def told(reply: httpx.Response, code: int) -> tuple[str, str]:
    """The type and the words of an error, checked to have OpenAI's shape."""
    assert reply.status_code == code, reply.text
    error = reply.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, None)
    return error["type"], error["message"]


def native(reply: httpx.Response, code: int, name: str) -> None:
    """Check that an error has the shape of Guerdon's own routes."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error.keys()) == (code, name, {"code", "message"})


async def test_callers_without_a_token_or_the_right(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(TOKENS)
    async with start_gateway(tokens=tokens) as gateway:
        with pytest.raises(openai.AuthenticationError) as unknown:
            await gateway.chat()
        error = unknown.value
        assert (error.type, error.param, error.code) == ("AuthenticationError", None, "401")
        assert error.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError):
            await gateway.openai.models.list()
        other = gateway.openai.with_options(api_key="other-key")
        with pytest.raises(openai.PermissionDeniedError) as refused:
            await other.chat.completions.create(model="policy", messages=QUESTION)
        assert refused.value.type == "PermissionDeniedError"
        refusals = 'refused_calls_total{code="UNAUTHENTICATED",method="http_chat_completions"}'
        assert await gateway.metric(refusals) == 1


async def test_what_is_not_served_and_bodies_that_are_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with start_gateway(max_body_bytes=4000) as gateway:
        with pytest.raises(openai.NotFoundError) as unlisted:
            await gateway.openai.models.retrieve("policy:best-of-5")
        assert (unlisted.value.type, unlisted.value.code) == ("NotFoundError", "404")
        for http in (gateway.http, gateway.sampler.http):
            assert told(await http.get("/v1/nothing"), 404) == ("NotFoundError", "Not Found")
            wrong = await http.get(CHAT)
            assert told(wrong, 405) == ("BadRequestError", "Method Not Allowed")
            assert wrong.headers["allow"] == "POST"
            kind, said = told(await http.post("/v1/embeddings", json={}), 413)
            assert (kind, said) == ("BadRequestError", "nothing at this path takes a body")
            native(await http.get("/nothing"), 404, "NOT_FOUND")
            native(await http.post("/healthz", json={}), 413, "RESOURCE_EXHAUSTED")
        native(await gateway.sampler.http.get("/v1/generate"), 405, "UNIMPLEMENTED")

        large = await gateway.post({"user": "x" * 4000})
        assert told(large, 413)[1] == "the body is larger than the limit of 4000 bytes"
        with monkeypatch.context() as patched:
            patched.setattr(bodies, "HELD_BODIES", 0)
            shed = await gateway.post({})
            assert told(shed, 429) == ("RateLimitError", "too many bodies are being read")
            assert shed.headers["retry-after"] == "1"
        monkeypatch.setattr(bodies, "BODY_SECONDS", 0.0)
        monkeypatch.setattr(bodies, "DISCARD_SECONDS", 0.0)
        assert told(await bodiless(gateway), 408) == ("BadRequestError", "no whole body in 0 s")


async def bodiless(gateway: Gateway) -> httpx.Response:
    """The answer to a request whose body does not come."""
    url = gateway.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.read()
    writer.close()
    await writer.wait_closed()
    return httpx.Response(int(head.split()[1]), content=body)
