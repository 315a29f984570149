"""A training loop of your own that asks a reward server: one call is added, marked below.

    guerdon serve reward --model helpful=runs/helpful
    python examples/custom_training_job.py --policy ./my-model --output ./trained

The loop is plain REINFORCE and generates with `transformers`. There is no sampler to keep.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from guerdon.client import RewardClient
from guerdon.models import resolve_model

PROMPTS = ["What is rain?", "Why is the sky blue?", "How do I boil an egg?", "Say something nice."]


def main():
    args = parse_arguments()
    torch.manual_seed(args.seed)
    folder = resolve_model(args.policy)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    rewards = RewardClient(args.rewards, timeout=600)  # waits for a server that restarts

    for step in range(1, args.steps + 1):
        prompt = PROMPTS[step % len(PROMPTS)]
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        ).to(args.device)
        start = inputs["input_ids"].shape[1]
        sequences = model.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            num_return_sequences=args.samples,
            max_new_tokens=args.max_tokens,
            pad_token_id=tokenizer.eos_token_id,
        )
        answers = tokenizer.batch_decode(sequences[:, start:], skip_special_tokens=True)

        # The one call that is added. Scores come in the order of the answers.
        scores = rewards.score_one(args.reward_model, prompt, answers, priority="batch").values

        reward = torch.tensor(scores, device=args.device)
        ends = (sequences[:, start:] == tokenizer.eos_token_id).long()
        drawn = ends.cumsum(1) - ends == 0  # all up to the first end, that one included
        logits = model(input_ids=sequences).logits[:, start - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(-1, sequences[:, start:, None]).squeeze(-1)
        loss = -((reward - reward.mean()) * (logprobs * drawn).sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: reward {reward.mean():.3f}", flush=True)

    rewards.close()
    if args.output:
        model.save_pretrained(args.output)
        tokenizer.save_pretrained(args.output)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", default="smollm2-135m-instruct", help="folder or name")
    parser.add_argument("--rewards", default="localhost:50051", help="HOST:PORT of the rewards")
    parser.add_argument("--reward-model", default="helpful", help="its name on the reward server")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--samples", type=int, default=8, help="answers to a prompt")
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="folder for the trained policy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
