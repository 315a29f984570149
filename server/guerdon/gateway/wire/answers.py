"""Answers as OpenAI's clients read them, with what the gateway has to tell beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guerdon.gateway.types import Candidate, RankedChoices, Score, Stopped, Unscored
from guerdon.serving.openai.replies import CHAT, AnswerShape, Envelope, Json, usage

SCORE_HEADER = "x-guerdon-score"
CANDIDATES_HEADER = "x-guerdon-candidates"
RANKED_HEADER = "x-guerdon-ranked"


def headers(answer: RankedChoices) -> dict[str, str]:
    """What an answer's headers tell."""
    found = {
        RANKED_HEADER: "true" if answer.ranked else "false",
        CANDIDATES_HEADER: str(len(answer.candidates) + len(answer.stopped)),
    }
    score = answer.choices[0].score
    if answer.ranked and isinstance(score, Score):
        found[SCORE_HEADER] = repr(score.value)
    return found


def whole(envelope: Envelope, answer: RankedChoices) -> Json:
    """The whole answer."""
    choices = [
        envelope.shape.choice(
            place,
            each.draft.text,
            finish_reason=each.draft.finish_reason,
            **_said(envelope.shape, each),
            guerdon=_choice(each),
        )
        for place, each in enumerate(answer.choices)
    ]
    return envelope.whole(choices, _usage(answer), guerdon=report(answer))


def chunks(envelope: Envelope, answer: RankedChoices, *, include_usage: bool) -> Iterator[Json]:
    """The answer as the chunks of a stream: each choice, its end, then usage and report."""
    shape, last = envelope.shape, len(answer.choices) - 1
    for place, each in enumerate(answer.choices):
        delta = shape.delta(place, _content(each), first=True)
        if shape is CHAT:
            delta["delta"].update(each.draft.said)
        yield envelope.chunk(delta)
        end = shape.delta(
            place, None, finish_reason=each.draft.finish_reason, guerdon=_choice(each)
        )
        told = {} if include_usage or place != last else {"guerdon": report(answer)}
        yield envelope.chunk(end, **told)
    if include_usage:
        yield envelope.chunk(usage=_usage(answer), guerdon=report(answer))


def report(answer: RankedChoices) -> Json:
    """What was done to find an answer."""
    seconds = answer.seconds
    scores = [*map(_candidate, answer.candidates), *map(_stopped, answer.stopped)]
    scores.sort(key=lambda each: each["candidate"])
    found: Json = {
        "strategy": answer.plan.strategy.value,
        "best_of": answer.plan.best_of,
        "ranked": answer.ranked,
        "candidates": len(scores),
        "stopped": len(answer.stopped),
        "scores": scores,
        "gain": answer.gain,
        "tokens": answer.tokens,
        "seconds": {"draw": seconds.draw, "score": seconds.score, "total": seconds.total},
        **answer.notes,
    }
    if answer.interrupted_tokens:
        found["interrupted_tokens"] = answer.interrupted_tokens
    if answer.reason:
        found["reason"] = answer.reason
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


def _usage(answer: RankedChoices) -> Json:
    """All tokens that were drawn; those of the choices count as accepted."""
    accepted = sum(each.draft.tokens for each in answer.choices)
    details = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": answer.tokens - accepted,
    }
    return usage(answer.prompt_tokens, answer.tokens, details)
