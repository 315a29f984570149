"""The rules for the fields of a request, whether it came as protobuf or as JSON.

Each error names the field as the request has it. What the vocabulary and the longest
sequence allow is checked here too, so that the engine never sees a prompt it can't take.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from guerdon.data import all_texts
from guerdon.sampler.request_limits import RequestLimits
from guerdon.sampler.types import GenerateItem, GenerateRequest, PlainText, SamplingOptions
from guerdon.serving.errors import InvalidRequest
from guerdon.serving.prompts import Conversation, FormattedText, TokenArray
from guerdon.serving.wire.convert import check_count, check_id

MAX_SEED = 2**64 - 1
MIN_TEMPERATURE = 0.01
"""vLLM raises a lower one to this, 0 excepted: completions would be drawn otherwise than asked."""
MAX_TEMPERATURE = 100.0
MAX_STOP_CHARACTERS = 256
"""Most characters of a text that ends a completion: all the newest text is searched for it."""
MAX_CHARACTERS_PER_TOKEN = 64
"""Most characters of a prompt for each token that the sampler takes: more than any language
needs."""


def check_request(
    request: GenerateRequest, limits: RequestLimits, vocab_size: int, max_tokens: int
) -> None:
    """Refuse a request with a field that is wrong.

    Args:
        vocab_size: every token id is less.
        max_tokens: most tokens of prompt and completion.

    Raises:
        InvalidRequest: with the field's path.
    """
    check_options(request.options, limits, vocab_size)
    if not request.items:
        raise InvalidRequest("items", "at least one is required")
    check_count("items", len(request.items), limits.max_items)
    for place, item in enumerate(request.items):
        check_item(item, f"items[{place}]", limits, vocab_size, max_tokens)


def check_item(
    item: GenerateItem, field: str, limits: RequestLimits, vocab_size: int, max_tokens: int
) -> None:
    """Refuse an item with a field that is wrong."""
    check_id(f"{field}.id", item.id, limits.max_id_length)
    if not 1 <= item.n <= limits.max_samples:
        raise InvalidRequest(
            f"{field}.n", f"is {item.n}, it must be between 1 and {limits.max_samples}"
        )
    if item.seed is not None and not 0 <= item.seed <= MAX_SEED:
        raise InvalidRequest(f"{field}.seed", f"is {item.seed}, it must be between 0 and 2**64 - 1")
    if isinstance(item.prompt, np.ndarray):
        check_tokens(item.prompt, f"{field}.prompt.token_ids.ids", vocab_size)
        check_room(item.prompt, f"{field}.prompt", max_tokens)
        if not 0 <= item.drawn < len(item.prompt):
            raise InvalidRequest(
                f"{field}.drawn",
                f"is {item.drawn}, and the prompt has {len(item.prompt)} tokens: it must be less",
            )
    else:
        if item.drawn:
            raise InvalidRequest(f"{field}.drawn", "needs a prompt of token ids")
        check_length(item.prompt, f"{field}.prompt", max_tokens)


def check_length(
    prompt: Conversation | str | FormattedText | PlainText, field: str, max_tokens: int
) -> None:
    """Refuse a text that can't fit, before the thread that tokenises for all is kept by it."""
    match prompt:
        case FormattedText(text) | PlainText(text) | str(text):
            size = len(text)
        case conversation:
            size = sum(map(len, all_texts(conversation)))
    if size > MAX_CHARACTERS_PER_TOKEN * max_tokens:
        raise InvalidRequest(
            field,
            f"has {size} characters, more than {MAX_CHARACTERS_PER_TOKEN} for each of the "
            f"{max_tokens} tokens that the sampler takes",
        )


def check_tokens(tokens: npt.NDArray[np.integer[Any]], field: str, vocab_size: int) -> None:
    """Refuse ids that the vocabulary doesn't have."""
    bad = np.flatnonzero(tokens >= vocab_size)
    if bad.size:
        raise InvalidRequest(
            f"{field}[{bad[0]}]", f"is {tokens[bad[0]]}, but the vocabulary has {vocab_size} tokens"
        )


def check_room(tokens: TokenArray, field: str, max_tokens: int) -> None:
    """Refuse a prompt that leaves no room for a completion."""
    if len(tokens) == 0:
        raise InvalidRequest(field, "makes no token at all")
    if len(tokens) >= max_tokens:
        raise InvalidRequest(
            field,
            f"has {len(tokens)} tokens, and the sampler takes {max_tokens} for prompt and "
            "completion together: no room is left to answer",
        )


def check_options(options: SamplingOptions, limits: RequestLimits, vocab_size: int) -> None:
    """Refuse options that cannot be."""
    if options.max_tokens < 1:  # more than the model takes is cut to what it takes
        raise InvalidRequest("options.max_tokens", "is required, and must be at least 1")
    if options.temperature and not MIN_TEMPERATURE <= options.temperature <= MAX_TEMPERATURE:
        raise InvalidRequest(
            "options.temperature",
            f"is {options.temperature}, it must be 0 or between {MIN_TEMPERATURE} and "
            f"{MAX_TEMPERATURE:g}",
        )
    if not 0 < options.top_p <= 1:
        raise InvalidRequest(
            "options.top_p", f"is {options.top_p}, it must be more than 0 and at most 1"
        )
    if not 0 <= options.top_k <= vocab_size:
        raise InvalidRequest(
            "options.top_k", f"is {options.top_k}, it must be between 0 and {vocab_size}"
        )
    check_count("options.stop", len(options.stop), limits.max_stop_tokens)
    for place, text in enumerate(options.stop):
        if not 0 < len(text) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"options.stop[{place}]",
                f"has {len(text)} characters, it must have 1 to {MAX_STOP_CHARACTERS}",
            )
    check_count("options.stop_token_ids", len(options.stop_token_ids), limits.max_stop_tokens)
    for place, token in enumerate(options.stop_token_ids):
        if not 0 <= token < vocab_size:
            raise InvalidRequest(
                f"options.stop_token_ids[{place}]",
                f"is {token}, but the vocabulary has {vocab_size} tokens",
            )
