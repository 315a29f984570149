"""A served reward model as a reward manager of verl (`RewardManagerBase`, verl 0.8 and newer).

reward.reward_manager.source=importlib
reward.reward_manager.name=RewardManager
reward.reward_manager.module.path=pkg://guerdon.integrations.verl
+reward.reward_kwargs.guerdon.server=localhost:50051
+reward.reward_kwargs.guerdon.model=helpful
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from guerdon.client import TLS, AsyncRewardClient
from guerdon.client.config import ScoringOptions
from guerdon.client.errors import invalid
from guerdon.integrations.conversation import exchange
from guerdon.integrations.scores import DroppedText, other_numbers

_SECTION = "reward.reward_kwargs.guerdon"
_KEYS = ("server", "model", "timeout", "tls", "end_tokens", "ignored_keys", "options")
_PARTS: Mapping[str, Collection[str]] = {
    "tls": [field.name for field in fields(TLS)],
    "options": list(ScoringOptions.__annotations__),
}
"""The settings that are mappings, and their keys."""
_ONE_ANSWER = 2
"""The value of `__num_turns__` for a prompt and one answer."""


class RewardManager(RewardManagerBase):  # type: ignore[misc] # verl has no types
    """Scores each rollout by its messages, `raw_prompt`, and the text of its response.

    Its settings are `reward.reward_kwargs.guerdon`: `server` and `model`, and optionally `timeout`
    (seconds that an outage may last, 600), `tls` (as `TLS`), `end_tokens` (texts of tokens that
    end an answer, beside the tokenizer's own end), `ignored_keys` (of messages) and `options` (see
    `ScoringOptions`). A token is read from `GUERDON_TOKEN`. Texts that spell a control token are
    refused unless the options say otherwise.

    Raises:
        InvalidArgument: a setting is missing, unknown or wrong.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any = None,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        if reward_router_address is not None:
            raise invalid("reward.reward_model.enable", "must be off: the reward model is served")
        settings = _settings(config)
        self._model: str = settings["model"]
        self._ignored_keys = settings.get("ignored_keys", ())
        self._options: ScoringOptions = {"priority": "batch", "reject_control_tokens": True}
        self._options.update(settings.get("options", {}))
        self._end_ids = _end_ids(tokenizer, settings.get("end_tokens", ()))
        self._rewards = AsyncRewardClient(
            settings["server"],
            token=os.environ.get("GUERDON_TOKEN"),
            tls=TLS(**settings["tls"]) if "tls" in settings else None,
            timeout=settings.get("timeout", 600),
        )
        self._dropped_text = DroppedText(self._model)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The score of the last sequence of a rollout.

        Args:
            data: a `DataProto` whose rows have `prompts` (P), `responses` (R), `attention_mask`
                (P + R) and, beside the tensors, `raw_prompt`.

        Returns:
            `reward_score`, and as `reward_extra_info` what else the model says of it.

        Raises:
            GuerdonError: it can't be scored, or there was no answer in time.
        """
        row = data[-1:][0]
        asked, said = exchange(
            list(row.non_tensor_batch["raw_prompt"]),
            self._response_text(row),
            ignored_keys=self._ignored_keys,
            where=("raw_prompt", "responses"),
        )
        scored = await self._rewards.score_one(self._model, asked, [said], **self._options)
        (score,) = scored.scores
        self._dropped_text.note([score])
        return {"reward_score": score.score, "reward_extra_info": dict(other_numbers(score))}

    def _response_text(self, row: Any) -> str:
        """The answer's text with its special tokens, but for the one that ended it.

        Raises:
            InvalidArgument: it is not one answer, or can't be told from the prompt.
        """
        if (row.non_tensor_batch.get("__num_turns__") or _ONE_ANSWER) > _ONE_ANSWER:
            raise invalid("responses", "has turns of tools or users, not one answer alone")
        responses, mask = row.batch["responses"], row.batch["attention_mask"]
        width = responses.shape[-1]
        if mask.shape[-1] != row.batch["prompts"].shape[-1] + width:
            raise invalid("attention_mask", "is not as wide as prompts and responses together")
        ids = responses[: int(mask[-width:].sum())].tolist()
        if ids and ids[-1] in self._end_ids:
            del ids[-1]
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text


def _settings(config: Any) -> Mapping[str, Any]:
    """The settings as plain values."""
    from omegaconf import OmegaConf

    found = (config.reward.get("reward_kwargs") or {}).get("guerdon")
    if not found:
        raise invalid(_SECTION, "is missing: it says which server and model to ask")
    settings = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
    for key in settings:
        if key not in _KEYS:
            raise invalid(f"{_SECTION}.{key}", f"is not one of {', '.join(_KEYS)}")
    for key in ("server", "model"):
        if not settings.get(key):
            raise invalid(f"{_SECTION}.{key}", "is missing")
    for name, keys in _PARTS.items():
        _check_mapping(settings.get(name, {}), keys, f"{_SECTION}.{name}")
    for name in ("end_tokens", "ignored_keys"):
        texts = settings.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise invalid(f"{_SECTION}.{name}", "must be a list of texts")
    return dict(settings)


def _check_mapping(found: Any, keys: Collection[str], where: str) -> None:
    if not isinstance(found, Mapping):
        raise invalid(where, f"must be a mapping, with any of {', '.join(keys)}")
    for key in found:
        if key not in keys:
            raise invalid(f"{where}.{key}", f"is not one of {', '.join(keys)}")


def _end_ids(tokenizer: Any, texts: Any) -> frozenset[int]:
    """The ids of the tokens that may end an answer."""
    found = {tokenizer.eos_token_id} - {None}
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise invalid(f"{_SECTION}.end_tokens", f"has {text!r}, which is not one token")
        found.update(ids)
    return frozenset(found)
