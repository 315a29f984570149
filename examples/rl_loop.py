"""GRPO in one file: the sampler draws, the reward server judges, this process learns.

    guerdon serve sampler --model smollm2-135m-instruct
    guerdon serve reward --model helpful=runs/helpful
    python examples/rl_loop.py --policy smollm2-135m-instruct --reward-model helpful

It shows the algorithm and the three calls that it needs. `guerdon train grpo` is the same with
what a long run wants: a KL term, sampling while it learns, checkpoints, evaluation, several GPUs.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from guerdon.client import Canary, GenerateItem, Item, PolicyClient, RewardClient, TensorSpec
from guerdon.models import resolve_model

PROMPTS = ["What is rain?", "Why is the sky blue?", "How do I boil an egg?", "Say something nice."]


def main():
    args = parse_arguments()
    random.seed(args.seed)
    prompts = PROMPTS
    if args.prompts:
        prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text().splitlines()]

    # The sampler and this process must begin from the same checkpoint.
    model = AutoModelForCausalLM.from_pretrained(resolve_model(args.policy), dtype=torch.float32)
    model.to(args.device).eval()  # no dropout: a token's probability must not depend on chance
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)

    with (
        PolicyClient(args.sampler, timeout=600) as sampler,
        RewardClient(args.rewards, timeout=600) as rewards,
    ):
        reward_model = rewards.get_model(args.reward_model).pinned  # one revision for the run
        # Whatever it served before: from here on the sampler draws from our weights. Versions
        # count up from here, so that a sampler that was restarted meanwhile is found out.
        version = 1
        publish(sampler, version, model, reset=True)

        for step in range(1, args.steps + 1):
            # 1. Draw a group of completions of each prompt.
            asked = random.sample(prompts, min(args.prompts_per_step, len(prompts)))
            completions = sampler.generate(
                [GenerateItem(prompt, n=args.group) for prompt in asked],
                max_tokens=args.max_tokens,
                temperature=args.temperature,
                min_version=version,
                return_text=True,
            )  # sorted: all of the first prompt, all of the second, …

            # 2. Score them. The answers to one prompt are one item: the prompt is computed once.
            groups = [
                completions[start : start + args.group]
                for start in range(0, len(completions), args.group)
            ]
            items = [
                Item(prompt, [completion.text for completion in group])
                for prompt, group in zip(asked, groups, strict=True)
            ]
            scores = torch.tensor(rewards.score(reward_model, items, priority="batch").scores)

            # 3. Advantages: how much better than the other answers to the same prompt (GRPO).
            spread = scores.std(dim=1, keepdim=True)
            advantages = (scores - scores.mean(dim=1, keepdim=True)) / (spread + 1e-4)

            # 4. Learn: a few passes over the batch, with the clipped ratio of PPO.
            batch = collate(completions, advantages.flatten(), args.device)
            for _ in range(args.epochs):
                loss, clipped = policy_loss(model, batch, args)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()

            # 5. Give the sampler the new weights, and a sequence by which it proves them.
            version += 1
            publish(sampler, version, model, canary=tokens(completions[0]))
            print(f"step {step}: reward {scores.mean():.3f}, clipped {clipped:.1%}", flush=True)

    if args.output:
        model.save_pretrained(args.output)


def tokens(completion):
    """The ids of prompt and answer."""
    return [*completion.prompt_token_ids.tolist(), *completion.token_ids.tolist()]


def collate(completions, advantages, device):
    """Padded ids, which of them were drawn, with which log-probability, and their advantage."""
    rows = [tokens(completion) for completion in completions]
    shape = len(rows), max(map(len, rows))
    ids = torch.zeros(shape, dtype=torch.long)
    real, drawn = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    behaviour = torch.zeros(shape)
    for i, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        start = len(completion.prompt_token_ids)
        ids[i, : len(row)] = torch.tensor(row)
        real[i, : len(row)] = True
        drawn[i, start : len(row)] = True
        # Under the weights and at the temperature that the sampler really drew with.
        behaviour[i, start : len(row)] = torch.tensor(completion.logprobs)
    batch = {"ids": ids, "real": real, "drawn": drawn[:, 1:], "behaviour": behaviour[:, 1:]}
    batch["advantages"] = advantages[:, None]  # every token of a completion has the same
    return {name: tensor.to(device) for name, tensor in batch.items()}


def token_logprobs(model, ids, real, temperature=1.0):
    """The log-probability of each token after the first, given those before it."""
    logits = model(input_ids=ids, attention_mask=real).logits[:, :-1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def policy_loss(model, batch, args):
    """PPO's clipped objective, mean over the drawn tokens; and the share that was clipped."""
    logprobs = token_logprobs(model, batch["ids"], batch["real"], args.temperature)
    ratio = (logprobs - batch["behaviour"]).exp()
    inside = ratio.clamp(1 - args.clip, 1 + args.clip)
    gain = torch.minimum(ratio * batch["advantages"], inside * batch["advantages"])
    drawn = batch["drawn"]
    clipped = (ratio != inside)[drawn].float().mean().item()
    return -gain[drawn].mean(), clipped


@torch.no_grad()
def publish(sampler, version, model, *, canary=None, reset=False):
    """Send every tensor under its checkpoint's name: all are taken, or none.

    The sampler computes the log-probabilities of the canary with the new weights, and refuses
    the update when they are not those that we get.
    """
    dtype = sampler.get_policy().dtype
    aliases = getattr(model, "all_tied_weights_keys", {})  # second names of other tensors
    tensors = {
        name: tensor.to(getattr(torch, dtype)).cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in aliases
    }
    canaries = []
    if canary:
        ids = torch.tensor([canary], device=model.device)
        logprobs = token_logprobs(model, ids, torch.ones_like(ids))
        canaries = [Canary(canary, logprobs[0].tolist())]
    sampler.update_weights(
        version,
        # The bytes, since NumPy has no bfloat16.
        (tensor.flatten().view(torch.uint8).numpy() for tensor in tensors.values()),
        specs=[TensorSpec(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()],
        canaries=canaries,
        reset=reset,
    )


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="smollm2-135m-instruct", help="that the sampler serves")
    parser.add_argument("--sampler", default="localhost:50052", help="HOST:PORT of the sampler")
    parser.add_argument("--rewards", default="localhost:50051", help="HOST:PORT of the rewards")
    parser.add_argument("--reward-model", default="helpful", help="its name on the reward server")
    parser.add_argument("--prompts", type=Path, help='JSON Lines of {"prompt": "text"}')
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts-per-step", type=int, default=4)
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="of a completion")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--epochs", type=int, default=2, help="passes over a step's completions")
    parser.add_argument("--clip", type=float, default=0.2, help="ε of the clipped ratio")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="folder for the trained policy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
