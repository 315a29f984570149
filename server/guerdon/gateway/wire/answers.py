"""Answers as OpenAI's clients read them, with what the gateway has to tell beside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guerdon.gateway.types import Candidate, RankedChoices, Score, Stopped, Unscored
from guerdon.serving.openai.replies import CHAT, AnswerShape, Envelope, Json, usage

SCORE_HEADER = "x-guerdon-score"
CANDIDATES_HEADER = "x-guerdon-candidates"
RANKED_HEADER = "x-guerdon-ranked"


def headers(ranked: RankedChoices) -> dict[str, str]:
    """What an answer's headers tell."""
    found = {
        RANKED_HEADER: "true" if ranked.ranked else "false",
        CANDIDATES_HEADER: str(len(ranked.candidates) + len(ranked.stopped)),
    }
    score = ranked.choices[0].score
    if ranked.ranked and isinstance(score, Score):
        found[SCORE_HEADER] = repr(score.value)
    return found


def whole_answer(envelope: Envelope, ranked: RankedChoices) -> Json:
    """The whole answer."""
    entries = [
        envelope.shape.choice(
            place,
            each.draft.text,
            finish_reason=each.draft.finish_reason,
            **_said(envelope.shape, each),
            guerdon=_choice(each),
        )
        for place, each in enumerate(ranked.choices)
    ]
    return envelope.whole_answer(entries, _usage(ranked), guerdon=ranking_report(ranked))


def chunks(envelope: Envelope, ranked: RankedChoices, *, include_usage: bool) -> Iterator[Json]:
    """The answer as the chunks of a stream: each choice, its end, then usage and report."""
    shape, last = envelope.shape, len(ranked.choices) - 1
    for place, each in enumerate(ranked.choices):
        delta = shape.delta(place, _content(each), first=True)
        if shape is CHAT:
            delta["delta"].update(each.draft.said)
        yield envelope.chunk(delta)
        end = shape.delta(
            place, None, finish_reason=each.draft.finish_reason, guerdon=_choice(each)
        )
        told = {} if include_usage or place != last else {"guerdon": ranking_report(ranked)}
        yield envelope.chunk(end, **told)
    if include_usage:
        yield envelope.chunk(usage=_usage(ranked), guerdon=ranking_report(ranked))


def ranking_report(ranked: RankedChoices) -> Json:
    """What was done to find an answer."""
    seconds = ranked.seconds
    scores = [*map(_candidate, ranked.candidates), *map(_stopped, ranked.stopped)]
    scores.sort(key=lambda each: each["candidate"])
    found: Json = {
        "strategy": ranked.plan.strategy.value,
        "best_of": ranked.plan.best_of,
        "ranked": ranked.ranked,
        "candidates": len(scores),
        "stopped": len(ranked.stopped),
        "scores": scores,
        "gain": ranked.gain,
        "tokens": ranked.tokens,
        "seconds": {"draw": seconds.draw, "score": seconds.score, "total": seconds.total},
        **ranked.notes,
    }
    if ranked.interrupted_tokens:
        found["interrupted_tokens"] = ranked.interrupted_tokens
    if ranked.reason:
        found["reason"] = ranked.reason
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


def _usage(ranked: RankedChoices) -> Json:
    """All tokens that were drawn; those of the choices count as accepted."""
    accepted = sum(each.draft.tokens for each in ranked.choices)
    details = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": ranked.tokens - accepted,
    }
    return usage(ranked.prompt_tokens, ranked.tokens, details)
