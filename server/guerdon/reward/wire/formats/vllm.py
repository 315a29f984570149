"""vLLM's pooling API: /classify, /pooling, /score; verl asks the first for rewards."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import ScoreItem, Truncation, Unrendered
from guerdon.reward.wire.formats.format import (
    B,
    FormatRequest,
    Json,
    OpenAIFormat,
    entries,
    final_scores,
    last_answer,
    usage,
)
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import (
    ForeignBody,
    Inputs,
    Messages,
    TemplateBody,
    Texts,
    read_turns,
)
from guerdon.serving.http.schemas import Text


class PoolingBody(TemplateBody):
    """Texts, token ids or a conversation."""

    model: Text = ""
    input: Inputs | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left"] | None = None
    use_activation: bool | None = None
    encoding_format: Literal["float"] = "float"


_OWN_TEMPLATE = "can't be set: the model's own template is used"
_NO_CUT = "can't be set: nothing is cut"
_WHOLE = "must be false: a whole answer is scored"
REFUSED = {
    **dict.fromkeys(("chat_template", "instruction", "instruct"), _OWN_TEMPLATE),
    **dict.fromkeys(("max_tokens_per_doc", "max_tokens_per_query"), _NO_CUT),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), _WHOLE),
}
REFUSED_OF_POOLING = {**REFUSED, "documents": _OWN_TEMPLATE}
REFUSED_OF_PAIRS = {
    **REFUSED,
    **dict.fromkeys(("chat_template_kwargs", "tools"), _OWN_TEMPLATE),
    "truncate_prompt_tokens": _NO_CUT,
}


class VLLMFormat(OpenAIFormat[B]):
    """What vLLM's formats have in common."""

    overload_code = 503  # which verl's client tries again, and 429 not
    refuses: ClassVar[Mapping[str, str]] = REFUSED

    def _reply(self, kind: str, scored: Scored, data: Sequence[Json]) -> Json:
        return {
            "id": f"{kind}-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": scored.info.name,
            "data": data,
            "usage": usage(scored),
        }


class Pooling(VLLMFormat[PoolingBody]):
    """vLLM's /pooling: raw scores."""

    paths: ClassVar[tuple[str, ...]] = ("/pooling",)
    body = PoolingBody
    refuses = REFUSED_OF_POOLING
    items_field = "input"

    def reads(self, value: Mapping[str, Json]) -> bool:
        return "input" in value or "messages" in value

    def field(self, path: str) -> str:
        """A part of a message response is one of the last message."""
        _, is_message, part = path.partition(".responses[0].message")
        return f"messages[-1]{part}" if is_message else super().field(path)

    def ask(self, body: PoolingBody) -> FormatRequest:
        if body.truncate_prompt_tokens is not None and body.truncate_prompt_tokens != -1:
            raise InvalidRequest(
                "truncate_prompt_tokens", "must be left out, or -1 for what the model takes"
            )
        cut = Truncation.PROMPT_LEFT if body.truncate_prompt_tokens == -1 else Truncation.REJECT
        return FormatRequest(items=self._items(body), model=body.model, truncation=cut)

    def reply(self, body: PoolingBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=not body.use_activation)
        data = [
            {"index": place, "object": "pooling", "data": [score]}
            for place, score in enumerate(scores)
        ]
        return self._reply("pool", scored, data)

    def _items(self, body: PoolingBody) -> list[ScoreItem]:
        if body.messages is not None:
            return [last_answer(read_turns(body.messages, "messages"), "messages", body)]
        for name in ("tools", "chat_template_kwargs"):
            if getattr(body, name):
                raise InvalidRequest(name, "is for messages: the input is text already")
        if body.input is None:
            raise InvalidRequest("input", "is required, or messages")
        if body.add_special_tokens is False:
            return self.texts(body.input, Unrendered.FORMATTED)
        return self.texts(body.input)


class Classify(Pooling):
    """vLLM's /classify: scores through the sigmoid, unless use_activation is false."""

    paths = ("/classify",)

    def reply(self, body: PoolingBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=body.use_activation is False)
        data = [
            {"index": place, "label": scored.info.label, "probs": [score], "num_classes": 1}
            for place, score in enumerate(scores)
        ]
        return self._reply("classify", scored, data)


class PairsBody(ForeignBody):
    """Pairs of texts: each first one with its second one, or one with all."""

    model: Text = ""
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    use_activation: bool | None = None


_PAIRS = (
    ("text_1", "text_2"),
    ("data_1", "data_2"),
    ("queries", "documents"),
    ("queries", "items"),
)
_TELLING = {name for pair in _PAIRS for name in pair} - {"items"}
"""Keys that tell a body of /v1/score from one of the native route, which has items too."""


class ScorePairs(VLLMFormat[PairsBody]):
    """vLLM's /score: pairs of texts, through the sigmoid."""

    paths = ("/score", "/v1/score")
    body = PairsBody
    refuses = REFUSED_OF_PAIRS

    def reads(self, value: Mapping[str, Json]) -> bool:
        items = value.get("items")
        native = isinstance(items, list) and any(
            isinstance(item, dict) and "responses" in item for item in items
        )
        return not native and not _TELLING.isdisjoint(value)

    def ask(self, body: PairsBody) -> FormatRequest:
        for pair in _PAIRS:
            first, second = (getattr(body, name) for name in pair)
            if first is not None and second is not None:
                return FormatRequest(items=_pairs(pair, first, second), model=body.model)
        raise InvalidRequest("text_1", "is required, and text_2")

    def reply(self, body: PairsBody, scored: Scored) -> Json:
        scores = final_scores(scored, raw=body.use_activation is False)
        data = [
            {"index": place, "object": "score", "score": score}
            for place, score in enumerate(scores)
        ]
        return self._reply("score", scored, data)

    def field(self, path: str) -> str:
        """A pair by its place: one first text has several responses, several have one each."""
        if re.match(r"items\[\d+\]\.", path) is None:  # a body's own items hold no fields
            return path
        places = [int(place) for place in re.findall(r"\[(\d+)\]", path)[:2]]
        return f"text_{len(places)}[{max(places)}]"


def _pairs(
    names: tuple[str, str], first: str | list[str], second: str | list[str]
) -> list[ScoreItem]:
    firsts, seconds = entries(first, names[0]), entries(second, names[1])
    if len(firsts) == 1:
        return [ScoreItem(firsts[0], tuple(seconds))]
    if len(firsts) != len(seconds):
        raise InvalidRequest(
            names[1], f"are {len(seconds)}, and {names[0]} {len(firsts)}: one for each, or one"
        )
    return [ScoreItem(one, (other,)) for one, other in zip(firsts, seconds, strict=True)]
