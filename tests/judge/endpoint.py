"""An OpenAI-compatible endpoint over a real socket whose replies a test writes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


NEVER = None
"""No answer: the endpoint waits until its client leaves."""

Script = Callable[[Json], "Answer | str | None"]
"""Makes the answer to a request's body: a text is what the model says."""


def completion(text: str | None, **more: Any) -> Answer:
    """A chat completion as OpenAI's API gives it."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
    choice |= {key: more.pop(key) for key in ("finish_reason",) if key in more}
    choice["message"] = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    return Answer(json.dumps({"choices": [choice], "usage": usage, **more}).encode())


class ScriptedEndpoint:
    """Answers by a script, and remembers what it was asked."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[Json] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Semaphore(0)
        """Released for each client that left without an answer."""
        self.asked = threading.Semaphore(0)
        """Released for each request."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint._answer(self)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def questions(self) -> list[str]:
        """The user turn of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        assert handler.path == "/v1/chat/completions"
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.headers.append({key.lower(): value for key, value in handler.headers.items()})
        self.bodies.append(body)
        answer = self.script(body)
        self.asked.release()
        if answer is NEVER:
            handler.connection.settimeout(60)
            assert handler.connection.recv(1) == b""
            self.left.release()
            return
        answer = completion(answer) if isinstance(answer, str) else answer
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(answer.body)))
        handler.end_headers()
        handler.wfile.write(answer.body)


@contextmanager
def scripted(script: Script) -> Iterator[ScriptedEndpoint]:
    endpoint = ScriptedEndpoint(script)
    try:
        yield endpoint
    finally:
        endpoint.close()


def replies(*answers: Answer | str | None) -> Script:
    """One after the other; the last one for ever."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]
