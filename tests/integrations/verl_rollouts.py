"""Rollouts through verl's own reward worker, in an environment that has verl.

    python verl_rollouts.py TOKENIZER SERVER MODEL     # prints what came back, as JSON

The tensors are those that verl's agent loop hands over (`_compute_score`) and, as one batch with
paddings, those of its trainer (`compute_rm_score`).
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import verl
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopWorker

PROMPTS = (
    [{"role": "user", "content": "What is rain?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "An egg?"}],
)
ANSWERS = ("Water from clouds.", "", "It is wet, <b>very</b> wet.")
CUT_OFF = "I am sorry, but"
SECTION = "reward.reward_kwargs.guerdon"
WRONG = (
    *("modle=x", "tls.cafile=x", "tls=x", "options=null", "options.prioritty=batch"),
    *("end_tokens=<end>", "ignored_keys=thinking"),
)


def settings(tokenizer: str, *overrides: str) -> Any:
    """verl's own settings of rewards, and what a user adds on the command line."""
    page = Path(verl.__file__).parent / "trainer" / "config" / "reward" / "reward.yaml"
    policy = {"model": {"path": tokenizer, "tokenizer_path": None}}
    own = {"reward": OmegaConf.load(page), "actor_rollout_ref": policy}
    return OmegaConf.merge(OmegaConf.create(own), OmegaConf.from_dotlist(list(overrides)))


def rollout(tokenizer: Any, turns: Any, answer: str, *, ended: bool = True) -> dict[str, Any]:
    """Token ids of a prompt and of a response."""
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    response = tokenizer.encode(answer, add_special_tokens=False)
    ending = [tokenizer.eos_token_id] if ended else []
    return {"turns": turns, "prompt": prompt, "response": response + ending}


def batch(rollouts: list[dict[str, Any]], *, pad: int, more: dict[str, Any]) -> DataProto:
    """Rollouts as one batch: prompts padded left, responses right."""
    wide = max(len(r["prompt"]) for r in rollouts), max(len(r["response"]) for r in rollouts)
    prompts = [[pad] * (wide[0] - len(r["prompt"])) + r["prompt"] for r in rollouts]
    responses = [r["response"] + [pad] * (wide[1] - len(r["response"])) for r in rollouts]
    mask = [
        [0] * (wide[0] - len(r["prompt"]))
        + [1] * (len(r["prompt"]) + len(r["response"]))
        + [0] * (wide[1] - len(r["response"]))
        for r in rollouts
    ]
    tensors = {"prompts": prompts, "responses": responses, "attention_mask": mask}
    raw = np.empty(len(rollouts), dtype=object)
    raw[:] = [r["turns"] for r in rollouts]
    return DataProto.from_dict(
        {name: torch.tensor(rows) for name, rows in tensors.items()},
        non_tensors={"raw_prompt": raw, **more},
    )


async def main(tokenizer: str, server: str, model: str) -> None:
    """Score rollouts in both ways."""
    overrides = [
        "reward.reward_manager.source=importlib",
        "reward.reward_manager.name=RewardManager",
        "reward.reward_manager.module.path=pkg://guerdon.integrations.verl",
        f"{SECTION}.server={server}",
        f"{SECTION}.model={model}",
        f"{SECTION}.timeout=20",
    ]
    worker = RewardLoopWorker(settings(tokenizer, *overrides), None)
    words = worker.input_tokenizer
    rollouts = [rollout(words, turns, answer) for turns in PROMPTS for answer in ANSWERS]
    rollouts.append(rollout(words, PROMPTS[0], CUT_OFF, ended=False))
    pad = words.pad_token_id
    turns = np.array([2] * len(rollouts))
    alone = [
        await worker.compute_score(batch([r], pad=pad, more={"__num_turns__": turns[:1]}))
        for r in rollouts
    ]
    whole = batch(rollouts, pad=pad, more={})
    together = await worker.compute_score_batch(whole)
    placed = type(worker.reward_manager).assemble_rm_scores(
        whole, [found["reward_score"] for found in together]
    )
    said = [(turns, answer) for turns in PROMPTS for answer in ANSWERS] + [(PROMPTS[0], CUT_OFF)]
    found = {"said": said, "alone": alone, "together": together, "sums": placed.sum(1).tolist()}
    print(json.dumps(found))
    tools = batch(rollouts[:1], pad=pad, more={"__num_turns__": np.array([4])})
    spelled = batch([rollout(words, PROMPTS[0], "a<|im_end|>b")], pad=pad, more={})
    for refused in (tools, spelled):
        try:
            await worker.compute_score(refused)
        except ValueError as error:
            print(error)
    for wrong in WRONG:
        try:
            RewardLoopWorker(settings(tokenizer, *overrides, f"{SECTION}.{wrong}"), None)
        except ValueError as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
