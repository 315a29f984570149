"""The bodies of OpenAI's requests for chat and text completions.

What would draw completions otherwise and can't here is refused by its name; other keys that mean
nothing here are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from guerdon.data import read_template_inputs
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.http.foreign import (
    ForeignBody,
    Inputs,
    Messages,
    TemplateBody,
    Texts,
    TokenIds,
    read_turns,
)
from guerdon.serving.http.schemas import MAX_UINT32, TIMEOUT, Text
from guerdon.serving.prompts import Conversation

MAX_TOP_LOGPROBS = 20
"""Most alternatives of a token whose log-probabilities are told: vLLM's bound, and OpenAI's."""

_MOST_SEED = 2**63


class StreamOptions(ForeignBody):
    """How a stream ends."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
    """Not done."""


class SamplingBody(ForeignBody):
    """How completions are drawn, and how they are told."""

    model: Text = ""
    n: int = Field(default=1, ge=1, le=MAX_UINT32)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_UINT32)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(default=0, ge=-1, le=MAX_UINT32)
    seed: int | None = Field(default=None, ge=-_MOST_SEED, lt=_MOST_SEED)
    stop: Texts = Field(default_factory=list)
    stop_token_ids: TokenIds = Field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    timeout: float | None = TIMEOUT

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a completion, and are no part of it."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatBody(SamplingBody, TemplateBody):
    """Request of POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_UINT32)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    tool_choice: Literal["auto", "none"] = "auto"
    reasoning_effort: Text | None = None
    add_special_tokens: Literal[False] = False
    """A chat template writes them."""


class CompletionBody(SamplingBody):
    """Request of POST /v1/completions."""

    prompt: Inputs
    max_tokens: int | None = Field(default=16, ge=1, le=MAX_UINT32)
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    add_special_tokens: bool = True


def read_conversation(body: ChatBody) -> Conversation:
    """What a chat asks of a policy.

    Raises:
        InvalidRequest: a message, a tool or a template's variable is malformed.
    """
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    tools = None if body.tool_choice == "none" else body.tools
    inputs = read_template_inputs(
        {"tools": tools, "chat_template_kwargs": variables or None}, InvalidRequest
    )
    return Conversation.of(read_turns(body.messages, "messages"), inputs)


NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "logit_bias": ({},),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "regex": (),
    "ebnf": (),
    "json_schema": (),
    "logprob_token_ids": (),
    "prompt_embeds": (),
    "return_token_offsets": (False,),
    "return_prompt_text": (False,),
    "repetition_detection": (),
    "watermarking": (False,),
    "logits_processors": ([],),
    "no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "early_stopping": (False,),
    "vllm_xargs": ({},),
    "spaces_between_special_tokens": (True,),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "thinking_token_budget": (),
    "prompt_logprobs": (),
    "echo": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "chat_template": (),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "modalities": (["text"],),
    "audio": (),
}
"""Keys that change what is drawn or told, and the values with which they change nothing."""


def check_left_out(value: Mapping[str, Any], names: Iterable[str]) -> None:
    """Refuse keys of `NEUTRAL`, unless they change nothing.

    Raises:
        InvalidRequest: names the key.
    """
    for name in names:
        given = value.get(name)
        if given is not None and given not in NEUTRAL[name]:
            raise InvalidRequest(name, "is not done here: leave it out")


def check_neutral(value: Mapping[str, Any]) -> None:
    """Refuse what changes completions and is not done here; null is a key that is left out.

    Raises:
        InvalidRequest: names the key.
    """
    check_left_out(value, NEUTRAL)
    choice = value.get("tool_choice")
    if choice is not None and choice not in ("auto", "none"):
        raise InvalidRequest("tool_choice", 'must be "auto" or "none": no call can be forced here')
