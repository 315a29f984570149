"""Answers as OpenAI's clients read them, with what the gateway has to tell beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guerdon.gateway.types import Candidate, RankedChoices, Score, Stopped, Unscored
from guerdon.serving.openai.replies import CHAT, AnswerShape, Envelope, Json, usage

SCORE_HEADER = "x-guerdon-score"
CANDIDATES_HEADER = "x-guerdon-candidates"
RANKED_HEADER = "x-guerdon-ranked"


def headers(choices: RankedChoices) -> dict[str, str]:
    """What an answer's headers tell."""
    found = {
        RANKED_HEADER: "true" if choices.ranked else "false",
        CANDIDATES_HEADER: str(len(choices.candidates) + len(choices.stopped)),
    }
    score = choices.choices[0].score
    if choices.ranked and isinstance(score, Score):
        found[SCORE_HEADER] = repr(score.value)
    return found


def whole_answer(envelope: Envelope, choices: RankedChoices) -> Json:
    """The whole answer."""
    entries = [
        envelope.shape.choice(
            place,
            each.draft.text,
            finish_reason=each.draft.finish_reason,
            **_said(envelope.shape, each),
            guerdon=_choice(each),
        )
        for place, each in enumerate(choices.choices)
    ]
    return envelope.whole_answer(entries, _usage(choices), guerdon=ranking_report(choices))


def chunks(envelope: Envelope, choices: RankedChoices, *, include_usage: bool) -> Iterator[Json]:
    """The answer as the chunks of a stream: each choice, its end, then usage and report."""
    shape, last = envelope.shape, len(choices.choices) - 1
    for place, each in enumerate(choices.choices):
        delta = shape.delta(place, _content(each), first=True)
        if shape is CHAT:
            delta["delta"].update(each.draft.said)
        yield envelope.chunk(delta)
        end = shape.delta(
            place, None, finish_reason=each.draft.finish_reason, guerdon=_choice(each)
        )
        told = {} if include_usage or place != last else {"guerdon": ranking_report(choices)}
        yield envelope.chunk(end, **told)
    if include_usage:
        yield envelope.chunk(usage=_usage(choices), guerdon=ranking_report(choices))


def ranking_report(choices: RankedChoices) -> Json:
    """What was done to find an answer."""
    seconds = choices.seconds
    scores = [*map(_candidate, choices.candidates), *map(_stopped, choices.stopped)]
    scores.sort(key=lambda each: each["candidate"])
    found: Json = {
        "strategy": choices.plan.strategy.value,
        "best_of": choices.plan.best_of,
        "ranked": choices.ranked,
        "candidates": len(scores),
        "stopped": len(choices.stopped),
        "scores": scores,
        "gain": choices.gain,
        "tokens": choices.tokens,
        "seconds": {"draw": seconds.draw, "score": seconds.score, "total": seconds.total},
        **choices.notes,
    }
    if choices.interrupted_tokens:
        found["interrupted_tokens"] = choices.interrupted_tokens
    if choices.reason:
        found["reason"] = choices.reason
    return found


def _choice(each: Candidate) -> Json:
    """What is told of a choice."""
    return {**_candidate(each), "ranked": each.scored}


def _candidate(each: Candidate) -> Json:
    found: Json = {"candidate": each.draft.index, "score": None, "tokens": each.draft.tokens}
    match each.score:
        case Score(value, model, revision, said):
            found |= {"score": value, "model": model, "revision": revision, **said}
        case Unscored(reason):
            found["reason"] = reason
    if not each.draft.ended:
        found["ended"] = False
    return found


def _stopped(each: Stopped) -> Json:
    return {
        "candidate": each.index,
        "score": None,
        "tokens": each.tokens,
        "reason": "was stopped: it was not needed",
        "ended": False,
    }


def _said(shape: AnswerShape, each: Candidate) -> dict[str, Any]:
    """A chat's message, where an endpoint said more than a text, or none."""
    if shape is not CHAT or not (each.draft.said or each.draft.textless):
        return {}
    return {"message": {"role": "assistant", "content": _content(each), **each.draft.said}}


def _content(each: Candidate) -> str | None:
    return None if each.draft.textless else each.draft.text


def _usage(choices: RankedChoices) -> Json:
    """All tokens that were drawn; those of the choices count as accepted."""
    accepted = sum(each.draft.tokens for each in choices.choices)
    details = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": choices.tokens - accepted,
    }
    return usage(choices.prompt_tokens, choices.tokens, details)
