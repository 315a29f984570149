"""Traces through the scoring of verifiers' own tasks, in an environment that has verifiers.

    python verifiers_task.py SETTINGS     # TOML; prints what came back, as JSON

`my_taskset` and `my_rewards` are imported by verifiers, as the settings name them.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import verifiers.v1 as vf

ASKED = [vf.SystemMessage(content="Be brief."), vf.UserMessage(content="What is rain?")]
MORE = [vf.AssistantMessage(content="Water."), vf.UserMessage(content="From where?")]


def trace(task: vf.Task, messages: list[Any]) -> vf.Trace:
    """The trace of a rollout in which the last message was drawn."""
    nodes = [
        vf.MessageNode(parent=i - 1 if i else None, message=m, sampled=m is messages[-1])
        for i, m in enumerate(messages)
    ]
    told = vf.TraceTask(type=type(task).__name__, data=task.data)
    return vf.Trace(task=told, agent=vf.AgentInfo(config=vf.AgentConfig()), nodes=nodes)


async def main(settings: dict[str, Any]) -> None:
    """Score answers; then what can't be scored, and without a server."""
    env = vf.resolve_env_config(settings["env"])
    task, *_ = vf.load_taskset(env.taskset)
    answers = [vf.AssistantMessage(content=text) for text in ("From clouds.", "")]
    found = []
    for messages in ([*ASKED, answers[0]], [*ASKED, answers[1]], [*ASKED, *MORE, answers[0]]):
        scored = trace(task, messages)
        await task.score(scored)
        turns = [message.model_dump(exclude_none=True) for message in messages]
        turns[-1].setdefault("content", "")
        (reward,) = scored.rewards.values()
        found.append([turns, list(scored.rewards), reward.score, reward.weight, scored.reward])
    print(json.dumps(found))
    call = vf.ToolCall(id="1", name="look", arguments="{}")
    forked = trace(task, [*ASKED, answers[0]])
    forked.nodes.append(vf.MessageNode(parent=1, message=answers[1], sampled=True))
    for refused in (
        trace(task, [*ASKED, vf.AssistantMessage(content="a", tool_calls=[call])]),
        trace(task, ASKED),
        forked,
    ):
        await print_refusal(task, refused)
    task.config.rewards["helpful"].fn = "my_rewards:down"
    await print_refusal(task, trace(task, [*ASKED, MORE[0]]))


async def print_refusal(task: Any, asked: vf.Trace) -> None:
    """The rewards of what can't be scored, and why."""
    try:
        await task.score(asked)
    except vf.TaskError as error:
        print(list(asked.rewards.values()), str(error).replace("\n", " "))


if __name__ == "__main__":
    asyncio.run(main(tomllib.loads(Path(sys.argv[1]).read_text())))
