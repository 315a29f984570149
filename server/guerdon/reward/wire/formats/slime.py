"""slime's and miles' remote reward models: POST /rm (`--rm-url`)."""

from __future__ import annotations

from guerdon.reward.scoring.scorer import Scored
from guerdon.reward.types import Conversation, PriorityClass, ScoreItem, Unrendered
from guerdon.reward.wire.formats.format import Format, FormatRequest, Json, TextOrMessages
from guerdon.serving.http.foreign import ForeignBody, read_turns
from guerdon.serving.http.schemas import Text


class RewardBody(ForeignBody):
    """A sample: its prompt as text, rendered text or messages, and its response."""

    prompt: TextOrMessages
    response: Text


class Slime(Format[RewardBody]):
    """slime's --rm-url.

    Its client tries ten times, 120 s each. The reply is the reward, a JSON number.
    """

    paths = ("/rm",)
    body = RewardBody
    hold_seconds = 110.0
    items_field = "prompt"
    priority = PriorityClass.BATCH
    overload_code = 503

    def ask(self, body: RewardBody) -> FormatRequest:
        if isinstance(body.prompt, str):
            return FormatRequest(items=[self.text(body.prompt, Unrendered.USER, body.response)])
        prompt = Conversation(tuple(read_turns(body.prompt, "prompt")))
        return FormatRequest(items=[ScoreItem(prompt, (body.response,))])

    def reply(self, body: RewardBody, scored: Scored) -> Json:
        return scored.items[0][0].score

    def field(self, path: str) -> str:
        if path.startswith("items[0].responses[0]"):
            return "response"
        return super().field(path).replace("messages", "prompt", 1)
