"""OpenRLHF's remote reward models: POST /get_reward (`--reward.remote_url`)."""

from __future__ import annotations

from pydantic import Field

from guerdon.reward.scoring.scorer import Scored, sigmoid
from guerdon.reward.types import PriorityClass, ScoreItem, Unrendered
from guerdon.reward.wire.formats.format import Format, FormatRequest, Json, raw_scores
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import ForeignBody, ManyTexts


class GetRewardBody(ForeignBody):
    """Rendered conversations, and the prompts that they begin with."""

    query: ManyTexts
    prompts: ManyTexts = Field(default=[])


class OpenRLHF(Format[GetRewardBody]):
    """OpenRLHF's /get_reward.

    Its client tries five times, a second apart, and 180 s each; then the reward is None. A
    request waits here instead. With several URLs, all but the first get empty lists.
    """

    paths = ("/get_reward",)
    body = GetRewardBody
    hold_seconds = 170.0
    priority = PriorityClass.BATCH
    items_field = "query"
    overload_code = 503

    def ask(self, body: GetRewardBody) -> FormatRequest:
        if body.prompts and len(body.prompts) != len(body.query):
            raise InvalidRequest(
                "prompts", f"are {len(body.prompts)}, and there are {len(body.query)} in query"
            )
        prompts = body.prompts or [""] * len(body.query)
        items = [
            self._item(query, prompt) for query, prompt in zip(body.query, prompts, strict=True)
        ]
        return FormatRequest(items=items, if_empty={"rewards": [], "scores": [], "extra_logs": {}})

    def reply(self, body: GetRewardBody, scored: Scored) -> Json:
        rewards = raw_scores(scored)
        raw = self._settings.openrlhf_scores == "raw" or scored.info.probability
        scores = rewards if raw else [sigmoid(reward) for reward in rewards]
        return {"rewards": rewards, "scores": scores, "extra_logs": {"reward": rewards}}

    def _item(self, query: str, prompt: str) -> ScoreItem:
        """Query cut at its prompt, where it begins with it and goes on."""
        if prompt and query.startswith(prompt):
            return self.text(prompt, Unrendered.FORMATTED, query[len(prompt) :])
        return self.text(query, Unrendered.FORMATTED)
