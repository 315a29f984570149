"""A harness of verifiers whose program asks the policy once, by a stream, and may show it a tool.

Theirs are scripts of uv, which installs what they need anew."""

from __future__ import annotations

import sys
from typing import Any

import verifiers.v1 as vf

__all__ = ["OneCall"]

PROGRAM = """
import os
import sys
import openai

endpoint, secret, model, prompt = sys.argv[1:]
asked = {"model": model, "messages": [{"role": "user", "content": prompt}]}
if os.environ.get("SHOWS_A_TOOL"):
    function = {"name": "look_up", "parameters": {"type": "object", "properties": {}}}
    asked["tools"] = [{"type": "function", "function": function}]
client = openai.OpenAI(base_url=endpoint, api_key=secret)
with client.chat.completions.stream(**asked) as stream:
    assert stream.get_final_completion().choices[0].message.content
"""


class OneCall(vf.Harness[vf.HarnessConfig]):
    """What a program of one's own is to verifiers: it speaks to the policy through the trace."""

    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: vf.Trace,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> Any:
        """Run the program in the rollout's runtime."""
        _, prompt = self.resolve_text_prompt(data)
        command = [sys.executable, "-c", PROGRAM, endpoint, secret, ctx.model, prompt or ""]
        return await runtime.run_program(command, dict(self.config.env))
