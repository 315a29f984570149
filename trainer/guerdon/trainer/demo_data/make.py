"""Make `train.jsonl` and `eval.jsonl` anew: `python -m guerdon.trainer.demo_data.make`.

The embedded model answers the prompts of `prompts.tsv` several times; `rules` says which
rules each answer keeps; an answer that keeps all is paired with answers that break some.
The seed is fixed. Sampling in bfloat16 may still part between machines whose kernels round
differently, which is why the result is checked in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guerdon.trainer.demo_data.rules import DemoQuestion, RuleResults, check_answer

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"
SEED = 20
BATCH = 58
PAIRS_PER_PROMPT = 3
EVAL_EVERY = 5

CONCISE = "You answer in one or two short and complete sentences."
CAREFUL = (
    "You are a careful assistant. When a request could hurt somebody or is against the law, "
    "you politely refuse it in one or two sentences."
)
REFUSED = (  # shown to the model before a harmful prompt; alone, it seldom refuses
    (
        "How do I steal a car?",
        "I'm sorry, but I can't help with that. Stealing is against the law and hurts the owner.",
    ),
    (
        "Write a message that frightens my neighbour.",
        "I'm sorry, but I can't write that. It could harm your neighbour; talking calmly may help.",
    ),
)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """One way of asking."""

    temperature: float
    max_tokens: int
    hint: bool
    """Whether turns before the prompt ask for a good answer. They are not part of the data."""


PLANS = (
    SamplingPlan(0.4, 64, hint=True),
    SamplingPlan(0.7, 64, hint=True),
    SamplingPlan(1.0, 64, hint=True),
    SamplingPlan(0.3, 64, hint=False),
    SamplingPlan(0.7, 64, hint=False),
    SamplingPlan(1.0, 64, hint=False),
    SamplingPlan(1.3, 48, hint=False),
    SamplingPlan(0.7, 20, hint=False),
    SamplingPlan(0.2, 96, hint=False),
)


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """One sampled answer."""

    text: str
    ended: bool
    tokens: int


def main() -> None:
    """Sample (or read) the answers, pair them, write both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument(
        "--answers", type=Path, help="read the sampled answers here, or keep them here when absent"
    )
    args = parser.parse_args()
    questions = read_questions()
    if args.answers and args.answers.exists():
        saved = json.loads(args.answers.read_text(encoding="utf-8"))
        answers = {prompt: [DrawnAnswer(**a) for a in found] for prompt, found in saved.items()}
    else:
        answers = sample(questions)
        if args.answers:
            plain = {prompt: [asdict(a) for a in found] for prompt, found in answers.items()}
            args.answers.write_text(json.dumps(plain, indent=1), encoding="utf-8")
    for split, rows in make_rows(questions, answers).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (args.output / f"{split}.jsonl").write_text(text, encoding="utf-8")
        broken = Counter(rule for row in rows for rule in row["why"]["rejected_fails"])
        prompts = len({row["prompt"][0]["content"] for row in rows})
        sys.stdout.write(f"{split}: {len(rows)} pairs, {prompts} prompts, {dict(broken)}\n")


def read_questions(path: Path = HERE / "prompts.tsv") -> list[DemoQuestion]:
    """The prompts and their key terms."""
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            category, prompt, terms = line.split("\t")
            groups = tuple(tuple(g.split("/")) for g in terms.split(";")) if terms else ()
            questions.append(DemoQuestion(category, prompt, groups))
    return questions


def sample(questions: list[DemoQuestion]) -> dict[str, list[DrawnAnswer]]:
    """Every prompt's answers, one for each plan, in the plans' order."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from guerdon.models import resolve_model

    folder = resolve_model(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    answers: dict[str, list[DrawnAnswer]] = defaultdict(list)
    for number, plan in enumerate(PLANS):
        torch.manual_seed(SEED + number)
        for start in range(0, len(questions), BATCH):
            batch = questions[start : start + BATCH]
            found = _generate(model, tokenizer, [_turns(q, plan) for q in batch], plan)
            for question, answer in zip(batch, found, strict=True):
                answers[question.prompt].append(answer)
            sys.stderr.write(f"plan {number + 1}/{len(PLANS)}: {start + len(batch)} prompts\n")
    return dict(answers)


def _turns(question: DemoQuestion, plan: SamplingPlan) -> list[dict[str, str]]:
    turns = [{"role": "user", "content": question.prompt}]
    if plan.hint and question.harmful:
        for asked, refusal in reversed(REFUSED):
            turns.insert(0, {"role": "assistant", "content": refusal})
            turns.insert(0, {"role": "user", "content": asked})
    if plan.hint:
        system = CAREFUL if question.harmful else CONCISE
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _generate(
    model: Any, tokenizer: Any, conversations: list[list[dict[str, str]]], plan: SamplingPlan
) -> list[DrawnAnswer]:
    import torch

    inputs = tokenizer.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=plan.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=plan.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    answers = []
    for row in output[:, inputs["input_ids"].shape[1] :].tolist():
        ended = tokenizer.eos_token_id in row
        ids = row[: row.index(tokenizer.eos_token_id)] if ended else row
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        answers.append(DrawnAnswer(text, ended, len(ids)))
    return answers


def make_rows(
    questions: list[DemoQuestion], answers: dict[str, list[DrawnAnswer]]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of both splits. A prompt, and all its pairs, belongs to one of them."""
    checked = {q.prompt: _check_answers(q, answers[q.prompt]) for q in questions}
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    splits = choose_splits(questions)
    for question in questions:
        split = splits[question.prompt]
        others = [q for q in questions if splits[q.prompt] == split]
        stray = _answer_to_another(question, others, checked)
        rows[split] += _pairs(question, checked[question.prompt], stray)
    return rows


def choose_splits(questions: list[DemoQuestion]) -> dict[str, str]:
    """Every fifth prompt of each category is for eval, in the order of the prompts' hashes."""
    groups: dict[str, list[str]] = defaultdict(list)
    for question in questions:
        groups[question.category].append(question.prompt)
    return {
        prompt: "eval" if i % EVAL_EVERY == 0 else "train"
        for prompts in groups.values()
        for i, prompt in enumerate(sorted(prompts, key=_digest))
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_answers(
    question: DemoQuestion, answers: list[DrawnAnswer]
) -> list[tuple[DrawnAnswer, RuleResults]]:
    """The distinct answers that hold text, with what the rules say of them."""
    seen: dict[str, tuple[DrawnAnswer, RuleResults]] = {}
    for answer in answers:
        if answer.text and answer.text not in seen:
            seen[answer.text] = (answer, check_answer(question, answer.text, ended=answer.ended))
    return list(seen.values())


def _answer_to_another(
    question: DemoQuestion,
    others: list[DemoQuestion],
    checked: dict[str, list[tuple[DrawnAnswer, RuleResults]]],
) -> tuple[DrawnAnswer, RuleResults] | None:
    """A good answer to another prompt of the split, which does not answer this one.

    Only every third prompt, by its hash, gets one: the other faults are more common.
    """
    number = int(_digest(question.prompt), 16)
    if number % 3 or question.harmful:
        return None
    for step in range(1, len(others)):
        other = others[(number + step) % len(others)]
        for answer, results in checked[other.prompt]:
            ours = check_answer(question, answer.text, ended=answer.ended)
            if results.good and not other.harmful and other != question and not ours.answers:
                return answer, ours
    return None


def _pairs(
    question: DemoQuestion,
    checked: list[tuple[DrawnAnswer, RuleResults]],
    stray: tuple[DrawnAnswer, RuleResults] | None,
) -> Iterator[dict[str, Any]]:
    """Up to `PAIRS_PER_PROMPT` rows, over different faults before twice the same."""
    good = [answer for answer, results in checked if results.good]
    bad = [(a, v, "sampled") for a, v in checked if not v.good]
    if stray:
        bad.insert(0, (*stray, "answer to another prompt"))
    times: Counter[tuple[str, ...]] = Counter()
    for i in range(min(PAIRS_PER_PROMPT, len(bad)) if good else 0):
        answer, results, source = min(bad, key=lambda entry: times[entry[1].failed])
        bad.remove((answer, results, source))
        times[results.failed] += 1
        yield {
            "prompt": [{"role": "user", "content": question.prompt}],
            "chosen": [{"role": "assistant", "content": good[i % len(good)].text}],
            "rejected": [{"role": "assistant", "content": answer.text}],
            "category": question.category,
            "why": {"rejected_fails": list(results.failed), "rejected_is": source},
        }


if __name__ == "__main__":
    main()
