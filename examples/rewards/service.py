"""A reward as an HTTP service, with Python alone.

REWARD_TOKEN=secret python examples/rewards/service.py --port 8123
GUERDON_VERIFIER_TOKEN=secret guerdon train grpo … --verifier http://localhost:8123/score
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = os.environ.get("REWARD_TOKEN", "")


def reward(asked: dict) -> float:
    """Change this: `asked` has `prompt`, `response`, and the prompt's other columns in `row`."""
    return min(1.0, 20 / max(1, len(asked["response"].split())))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        shown = self.headers.get("authorization", "").encode()
        if TOKEN and not hmac.compare_digest(shown, f"Bearer {TOKEN}".encode()):
            return self.answer(401, {"error": "no token, or a wrong one"})
        return self.answer(200, {"reward": reward(json.loads(body))})

    def answer(self, status: int, found: dict) -> None:
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8123, help="on this machine alone")
    port = parser.parse_args().port
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
