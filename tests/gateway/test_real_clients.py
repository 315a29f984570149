"""Unmodified clients from their own packages, asking a gateway that wants a token, and the sampler
behind it: what they must get is worked out from the policy's formula and the served scores."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from tests.support.formula_engine import FormulaEngine, WordTokenizer, text_of, tokens_of
from tests.support.packages import node_modules_with, python_with, run_program
from tests.support.ports import free_port
from tests.support.sampler_service import start_sampler
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import FormattedText, RewardClient
from guerdon.sampler.types import PlainText
from guerdon.serving.prompts import Conversation, Prompt, TokenArray

from .support import QUESTION, gateway_before

PACKAGES = ("openai==3.57.0", "langchain-openai==1.7.4", "litellm==1.110.2")
NODE_PACKAGE = "openai@7.59.0"
PROGRAMS = Path(__file__).with_name("clients")
KEY, SEED = "of-the-clients", 5
SPENT_KEY, LIMIT = "of-one-who-has-spent", 40
TEXT = "The highest mountain is"
PARTS = [{"type": "text", "text": QUESTION[0]["content"]}]
TOOL = {
    "type": "function",
    "function": {
        "name": "height",
        "description": "The height of a mountain.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
TOOL_TOKEN, BOS = 900, 1

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]


class ToolTokenizer(WordTokenizer):
    """Shows the policy each tool as a token, so that its answer tells whether it saw them."""

    def encode(self, prompt: Prompt | PlainText, field: str) -> TokenArray:
        tokens = super().encode(prompt, field)
        tools = prompt.tools if isinstance(prompt, Conversation) else ()
        return np.append(tokens, [TOOL_TOKEN] * len(tools)).astype(np.int32)


@dataclass(frozen=True)
class Servers:
    """The running services."""

    gateway: str
    """URL of its OpenAI API."""
    sampler: str
    """URL of the one that requests with tools are passed on to."""
    engine: FormulaEngine
    rewards: RewardClient

    def expected(self, case: dict[str, Any], count: int, *, ranked: bool) -> list[str]:
        """The texts that a client must get.

        Args:
            case: what it asks.
            count: candidates that are drawn.
            ranked: best first, by the reward model's own client; else as drawn.
        """
        prompt = case.get("prompt", QUESTION[0]["content"])
        # A text begins with BOS, and its completions with the space that they follow it by.
        before, space = ([BOS], " ") if "prompt" in case else ([], "")
        after = [TOOL_TOKEN for _ in case.get("tools", ())]
        found = candidates([*before, *map(len, prompt.split()), *after], count)
        drawn = [space + text for text in found]
        if not ranked:
            return drawn
        values = self.scores(case, drawn)
        assert len(set(values)) == count
        best = [text for _, text in sorted(zip(values, drawn, strict=True), reverse=True)]
        return best[: case.get("n", 1)]

    def scores(self, case: dict[str, Any], texts: list[str]) -> list[float]:
        """What the reward model's own client gets for answers to what a client asks."""
        completed = FormattedText(case["prompt"]) if "prompt" in case else QUESTION
        return list(self.rewards.score_one("helpful", completed, texts).values)


def candidates(prompt: list[int], n: int) -> list[str]:
    """What the policy draws, by its formula."""
    return [text_of(tokens_of(prompt, sample, SEED)) for sample in range(n)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Servers]:
    folder = tmp_path_factory.mktemp("services")
    token = folder / "token"
    token.write_text(KEY)
    callers = folder / "callers.toml"
    keys = {"clients": KEY, "spent": SPENT_KEY}
    named = [f'[callers.{who}]\ntoken = "{key}"\nroles = ["sample"]\n' for who, key in keys.items()]
    callers.write_text("".join(named))
    checkpoint = tiny_checkpoint(folder / "m", "llama", seed=5)
    with running_server({"helpful": checkpoint}, dtype="float32") as rewards:
        async with start_sampler(ToolTokenizer(), token_file=token) as sampler:
            url = f"{sampler.http.base_url}/v1"
            before = gateway_before(
                sampler,
                f"{rewards.address}/helpful",
                f"127.0.0.1:{free_port()}/gone",
                tokens=callers,
                spending={"caller_seconds": 1e9, "callers": {"spent": LIMIT}},
                sampler_token_file=token,
                endpoint_key_file=token,
                pass_to=url,
                endpoint_model="formula",
            )
            async with before as gateway:
                body = {"model": "policy", "messages": QUESTION, "best_of": 1, "max_tokens": LIMIT}
                shown = {"authorization": f"Bearer {SPENT_KEY}"}
                spent = await gateway.http.post("/v1/chat/completions", json=body, headers=shown)
                assert spent.status_code == 200, spent.text
                with RewardClient(rewards.address) as client:
                    asked = f"{gateway.http.base_url}/v1"
                    yield Servers(asked, url, sampler.engine, client)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has LangChain and LiteLLM."""
    return python_with(tmp_path_factory.mktemp("clients"), *PACKAGES)


ANSWERED: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({"model": "policy"}, 8),
    "parts": ({"model": "policy", "messages": [{"role": "user", "content": PARTS}]}, 8),
    "n": ({"model": "policy:best-of-4", "n": 3}, 4),
    "name": ({"model": "policy:best-of-4"}, 4),
    "header": ({"model": "policy:best-of-4", "headers": {"x-guerdon-best-of": "5"}}, 5),
    "best_of": ({"model": "policy:best-of-4", "body": {"best_of": 3}}, 3),
    "object": ({"model": "policy:best-of-4", "body": {"guerdon": {"best_of": 2}}}, 2),
    "text": ({"model": "policy", "prompt": TEXT, "n": 2, "body": {"best_of": 3}}, 3),
    "stream": ({"model": "policy:best-of-4", "stream": True}, 4),
    "n, streamed": ({"model": "policy:best-of-4", "n": 2, "stream": True}, 4),
    "tools": ({"model": "policy:best-of-4", "tools": [TOOL]}, 1),
    "tools, streamed": ({"model": "policy:best-of-4", "tools": [TOOL], "stream": True}, 1),
}
"""What is asked of the gateway, and how many candidates are drawn for it."""
OF_THE_SAMPLER: dict[str, tuple[dict[str, Any], int]] = {
    "the sampler": ({"model": "formula", "n": 3}, 3),
    "the sampler, streamed": ({"model": "formula", "stream": True}, 1),
    "the sampler, with tools": ({"model": "formula", "tools": [TOOL]}, 1),
}
NOT_FOUND, BAD_REQUEST, NO_KEY = "NotFoundError", "BadRequestError", "AuthenticationError"
AWAY, TOO_MANY = "InternalServerError", "RateLimitError"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "another model": ({"model": "gpt-4"}, NOT_FOUND, "there is no 'gpt-4' here"),
    "a wrong field": ({"model": "policy", "body": {"best_of": 0}}, BAD_REQUEST, "best_of: is 0"),
    "the same, streamed": (
        {"model": "policy", "body": {"best_of": 0}, "stream": True},
        BAD_REQUEST,
        "best_of: is 0",
    ),
    "another key": ({"model": "policy", "key": "wrong"}, NO_KEY, "the bearer token is wrong"),
    "tools that must be called": (
        {"model": "policy", "tools": [TOOL], "body": {"tool_choice": "required"}},
        BAD_REQUEST,
        "no call can be forced here",
    ),
    "spending": (
        {"model": "policy", "key": SPENT_KEY, "body": {"best_of": 1, "max_tokens": LIMIT}},
        TOO_MANY,
        f"this call may take {LIMIT} tokens",
    ),
    "rewards that are away": (
        {"model": "policy", "body": {"guerdon": {"best_of": 1, "model": "gone"}}},
        AWAY,
        "the rewards of gone are away",
    ),
}
"""What is refused, the error's class in OpenAI's clients, and its words."""


async def check(
    servers: Servers,
    *command: object,
    errors: Mapping[str, str] | None = None,
    cannot: Collection[str] = (),
    **environment: str,
) -> None:
    """Let a client's program ask everything, and compare what it got.

    Args:
        command: runs the program.
        cannot: names of what the client itself can't do.
        errors: the client's own names of OpenAI's classes, where it has others.
        environment: of the program.
    """
    answered = {k: v for k, v in (ANSWERED | OF_THE_SAMPLER).items() if k not in cannot}
    asked = {name: case for name, (case, *_) in (answered | REFUSED).items()}
    cases = [
        {
            "url": servers.sampler if name in OF_THE_SAMPLER else servers.gateway,
            "key": KEY,
            "seed": SEED,
            **({} if "prompt" in case else {"messages": QUESTION}),
            **case,
        }
        for name, case in asked.items()
    ]
    servers.engine.behaviour.drawn = 0
    printed = await asyncio.to_thread(run_program, *command, json.dumps(cases), **environment)
    found = dict(zip(asked, map(json.loads, printed.splitlines()), strict=True))
    for name, (case, count) in answered.items():
        told, ranked = found[name], name in ANSWERED and "tools" not in case
        assert told.get("texts") == servers.expected(case, count, ranked=ranked), (name, told)
        if "guerdon" in told and name in ANSWERED:
            assert told["guerdon"]["ranked"] == ranked
            assert told["guerdon"].get("candidates", 1) == count
        check_header(servers, case, told, ranked=ranked)
    assert found["the sampler, streamed"]["pieces"] > 3  # a token each, not the whole at once
    counts = [count for _, count in answered.values()]
    assert servers.engine.behaviour.drawn == sum(counts) + 1  # for the rewards that are away
    for name, (_, kind, words) in REFUSED.items():
        assert found[name].get("error") == (errors or {}).get(kind, kind), (name, found[name])
        assert words in found[name]["message"]


def check_header(
    servers: Servers, case: dict[str, Any], told: dict[str, Any], *, ranked: bool
) -> None:
    """Compare the header `x-guerdon-score`, where the client shows it, with the best's score."""
    if not ranked or "header" not in told:
        assert told.get("header") is None
        return
    header = float(told["header"])
    [score] = servers.scores(case, told["texts"][:1])
    assert header == pytest.approx(score, abs=1e-4)
    assert header == told.get("score", header)


async def test_openai(servers: Servers) -> None:
    await check(servers, sys.executable, PROGRAMS / "ask_openai.py")


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
async def test_openai_of_node(servers: Servers, tmp_path: Path) -> None:
    modules = await asyncio.to_thread(node_modules_with, tmp_path, NODE_PACKAGE)
    await check(servers, "node", PROGRAMS / "ask_openai.js", NODE_PATH=str(modules))


async def test_langchain(servers: Servers, python: Path) -> None:
    errors = {
        NOT_FOUND: "OpenAIModelNotFoundError",
        BAD_REQUEST: "OpenAIInvalidRequestError",
        NO_KEY: "OpenAIAuthenticationError",
        TOO_MANY: "OpenAIRateLimitError",
        AWAY: "OpenAIAPIError",
    }
    # It reads the first choice alone of each event of a stream, whichever it is of.
    cannot = ("n, streamed",)
    await check(servers, python, PROGRAMS / "ask_langchain.py", errors=errors, cannot=cannot)


async def test_litellm(servers: Servers, python: Path) -> None:
    own = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else it looks for prices on the net
    errors = {AWAY: "ServiceUnavailableError"}
    await check(servers, python, PROGRAMS / "ask_litellm.py", errors=errors, **own)
