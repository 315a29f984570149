"""Language models: how likely each token of a response was, or what would be said after it.

Only the places before a response's tokens go through the head, a chunk at a time, in float32:
the logits of a whole batch over a whole vocabulary would be larger than the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from guerdon.reward.engine.heads import Logits, Reads
from guerdon.reward.engine.plan import Places
from guerdon.serving.errors import CheckpointRefused

CHUNK_LOGITS = 1 << 25
"""Logits that are made at once: 128 MiB in float32."""


class DetachedHead(nn.Module):
    """The head of a language model without its body: hidden states [N, H] to logits, in float32.

    Whatever a model does to its logits (a soft cap, as Gemma 2 has; a scale, as Cohere and Granite
    have) is done by its own `forward`, run on hidden states that are there already.

    Args:
        model: a causal language model of `transformers`.
        tokens: those whose logits are computed, in this order; all of the vocabulary when None.

    Raises:
        CheckpointRefused: its head can't be run apart from its body.
    """

    def __init__(self, model: Any, tokens: Sequence[int] | None = None) -> None:
        super().__init__()
        self._body = _Body()
        self.alone = _without_body(model, self._body, tokens)
        try:
            with torch.inference_mode():
                logits = self(torch.zeros((1, model.config.hidden_size), device=model.device))
            if tokens is not None and logits.shape[1] != len(tokens):
                raise LookupError("no rows can be taken out of its last layer")
        except Exception as error:  # whatever its forward wants of its body
            raise CheckpointRefused(
                f"the head of {type(model).__name__} can't be computed apart from its body: "
                f"{type(error).__name__}: {error}"
            ) from error

    def forward(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """The logits [N, V], or those of the `tokens`."""
        self._body.hidden = hidden_NH[None]
        try:
            logits: torch.Tensor = self.alone(
                input_ids=hidden_NH.new_zeros((1, len(hidden_NH)), dtype=torch.long),
                use_cache=False,
            ).logits[0]
        finally:
            self._body.hidden = None
        return logits.float()


class LanguageHead:
    """log π(yₜ | x, y_<t) of the tokens of responses.

    Args:
        model: a causal language model of `transformers`.

    Raises:
        CheckpointRefused: its head can't be run apart from its body.
    """

    reads = Reads.RESPONSE
    labels = 1

    def __init__(self, model: Any) -> None:
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._head = DetachedHead(model)

    def logprobs(
        self,
        hidden: torch.Tensor,
        tokens: npt.NDArray[np.int64],
        sequences: Sequence[Places],
        readout: Sequence[npt.NDArray[np.int64]],
    ) -> list[Logits]:
        """log π of the tokens that are read, nats, for each sequence [R, 1].

        Args:
            hidden: [M, H], the hidden states of a whole batch, in any order.
            tokens: [M], their token ids.
            sequences: for each sequence the places in `hidden` of its tokens, in order.
            readout: for each sequence the tokens of it to read, none of them its first.
        """
        assert len(readout) == len(sequences), "implicit rewards need the responses' places"
        before = np.concatenate([s[read - 1] for s, read in zip(sequences, readout, strict=True)])
        read = np.concatenate([s[read] for s, read in zip(sequences, readout, strict=True)])
        places_R = torch.from_numpy(before).to(hidden.device)
        tokens_R = torch.from_numpy(tokens[read]).to(hidden.device)
        size = max(1, CHUNK_LOGITS // self._vocabulary)
        found = [
            self._chunk(hidden.index_select(0, places), chosen)
            for places, chosen in zip(
                torch.split(places_R, size), torch.split(tokens_R, size), strict=True
            )
        ]
        logprobs = torch.cat(found).cpu().numpy()[:, None]
        return list(np.split(logprobs, np.cumsum([len(r) for r in readout])[:-1]))

    def _chunk(self, hidden_NH: torch.Tensor, tokens_N: torch.Tensor) -> torch.Tensor:
        logits_NV: torch.Tensor = self._head(hidden_NH.float())
        return logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(1)


class _Body(nn.Module):
    """Stands where a model's body stood, and gives the hidden states that it was given."""

    hidden: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        assert self.hidden is not None
        return _Output(self.hidden)


class _Output:
    """A body's output with hidden states and nothing else."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place: Any) -> Any:
        return (self.last_hidden_state,)[place]


def _without_body(model: Any, body: _Body, tokens: Sequence[int] | None) -> Any:
    """A model with the head of another, in float32, and a body that computes nothing.

    Where `tokens` are given, the last layer has their rows alone.
    """
    prefix = model.base_model_prefix
    if getattr(model, prefix, None) is not model.base_model:
        raise CheckpointRefused(f"{type(model).__name__} does not tell its body from its head")
    shell = copy.copy(model)
    shell.__dict__ = {**model.__dict__, "_modules": dict(model._modules)}
    for name, module in model._modules.items():
        if name == prefix:
            shell._modules[name] = body
        elif tokens is not None and module is model.get_output_embeddings():
            shell._modules[name] = _rows(module, tokens)
        elif module is not None and model.dtype != torch.float32:
            shell._modules[name] = copy.deepcopy(module).float()
    return shell


def _rows(layer: Any, tokens: Sequence[int]) -> nn.Linear:
    """Some of a linear layer's outputs, in float32."""
    rows = nn.Linear(layer.in_features, len(tokens), layer.bias is not None, layer.weight.device)
    with torch.no_grad():
        rows.weight.copy_(layer.weight[list(tokens)])
        if layer.bias is not None:
            rows.bias.copy_(layer.bias[list(tokens)])
    return rows.requires_grad_(False)


def is_language_model(architecture: str, config: PretrainedConfig) -> bool:
    """Whether the model says how likely each next token is."""
    return bool(architecture == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type))


def language_head(model: Any) -> LanguageHead | None:
    """The head of a language model, or None if it is something else."""
    cls = type(model)
    known = cls.__module__.startswith("transformers.")
    if not known or not is_language_model(cls.__name__, model.config):
        return None
    return LanguageHead(model)


class VerdictNetwork(nn.Module):
    """An `OwnHead` that reads what a language model would say next.

    What it doesn't say itself, the language model does: engines and probes take it for a model of
    `transformers`.

    Args:
        language_model: a causal language model of `transformers`, which stays as it is.
        tokens: those whose logits are read, in this order.
    """

    reads = Reads.LAST

    def __init__(self, language_model: Any, tokens: Sequence[int]) -> None:
        super().__init__()
        self.language_model = language_model
        self._tokens = list(tokens)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("language_model"), name)

    @property
    def labels(self) -> int:
        """How many tokens are read."""
        return len(self._tokens)

    def head(self) -> nn.Module:
        """Hidden states [N, H] to the logits [N, labels], in float32."""
        return DetachedHead(self.language_model, self._tokens)

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """The logits [B, labels] after the last place, of all that the language model says."""
        logits: torch.Tensor = self.language_model(**inputs).logits
        return SimpleNamespace(logits=logits[:, -1, self._tokens])
