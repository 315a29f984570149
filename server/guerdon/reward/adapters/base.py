"""What the modules of published models have in common."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from guerdon.models import Manifest
from guerdon.reward.engine.heads import Reads
from guerdon.reward.types import ModelKind
from guerdon.serving.errors import CheckpointRefused

Shapes = dict[str, tuple[int, ...]]
"""Tensors' names and shapes."""


class PublishedNetwork:
    """The part of a published model that is written here; mixed into a `transformers` one.

    A class sets `reads` and `labels` and makes its `head()`; the body is `base_model`. Its
    modules are named as the checkpoint names their tensors.
    """

    reads: Reads
    labels: int
    """Numbers that the head gives for each place it reads."""
    # Heads are always computed in float32, so they are never rounded on the way.
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = [
        "score",
        "regression_layer",
        "reward_transform_matrix",
        "gating",
        "weights",
        "v_head",
        "head_layer",
    ]
    # Some of these checkpoints still hold the language model's head, which no score uses.
    _keys_to_ignore_on_load_unexpected = (r"^lm_head\.",)

    @property
    def dtype(self) -> torch.dtype:
        """The body's number type; the head's is float32."""
        body: nn.Module = self._body()
        return next(body.parameters()).dtype

    def head(self) -> nn.Module:
        """The layers from the hidden states that are read, in float32, to logits [N, labels].

        They are [N, H]; [N, 2, H] for `Reads.GATE`, and [N, 3, H] for `Reads.MARKS`. The layers
        named `score`, unless a class says otherwise.
        """
        score: nn.Module = getattr(self, "score")  # noqa: B009 - of the class it is mixed into
        return score

    def forward(
        self, input_ids: torch.Tensor, readout: torch.Tensor | None = None, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """One sequence [1, T], plainly: the reference that the probes compare engines with.

        Args:
            input_ids: token ids.
            readout: `Reads.GATE`: the gate's place in the sequence, [1]; `Reads.MARKS`: the
                marks' places, [3].
            kwargs: for the body.

        Returns:
            Logits [1, labels], or [1, T, labels] for `Reads.STEPS`.
        """
        assert len(input_ids) == 1, "one sequence at a time"
        hidden = self._body()(input_ids=input_ids, **kwargs).last_hidden_state[0].float()
        if self.reads is Reads.STEPS:
            return SequenceClassifierOutput(logits=self.head()(hidden)[None])
        if self.reads is Reads.GATE:
            assert readout is not None, "a gated model needs the gate's place"
            rows = torch.stack([hidden[int(readout[0])], hidden[-1]])[None]
        elif self.reads is Reads.MARKS:
            assert readout is not None, "a pairwise model needs the marks' places"
            rows = hidden[readout.to(hidden.device)][None]
        else:
            rows = hidden[-1:]
        return SequenceClassifierOutput(logits=self.head()(rows))

    def _body(self) -> Any:
        return getattr(self, "base_model")  # noqa: B009 - of the class it is mixed into


def two_layers(hidden: int, labels: int) -> nn.Sequential:
    """Linear, ReLU, Linear: the `score` of Qwen2.5-Math's and INF-ORM's models."""
    return nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, labels))


class Adapter(abc.ABC):
    """A published reward model, as its checkpoint folder describes it: one class for each."""

    name: ClassVar[str]
    """The name that people call it by."""
    architecture: ClassVar[str]
    """What config.json names under `architectures`."""
    model_type: ClassVar[str] = "llama"
    """What config.json says under `model_type`."""
    kind: ClassVar[ModelKind]
    code: ClassVar[Collection[str]] = ()
    """What `auto_map` may name, as `module.Class`, or `Class` where the module's name is not
    known here. It is never run."""
    unused: ClassVar[tuple[str, ...]] = ("lm_head.",)
    """Beginnings of the names of tensors that a checkpoint may hold and no score uses."""
    own_tokenizer: ClassVar[bool] = False
    """Whether its tokenizer is code too, so that only a tokenizer.json can be read."""

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether a config.json with this architecture is this model's: names are shared."""
        return True

    def read_config(self, values: Mapping[str, Any]) -> PretrainedConfig:
        """The config of the `transformers` family that config.json names.

        Without its code, and without the attention that it was trained with: the engine has its
        own.

        Raises:
            ValueError, KeyError: it can't be used.
        """
        known = {k: v for k, v in values.items() if k not in ("auto_map", "attn_implementation")}
        return CONFIG_MAPPING[str(values["model_type"])].from_dict(known)

    @property
    @abc.abstractmethod
    def network(self) -> type[Any]:
        """The class written here: a `PublishedNetwork`, and a `PreTrainedModel`."""

    @property
    def labels(self) -> int:
        """Numbers that the head gives for each place it reads."""
        return int(self.network.labels)

    def layout(self, config: PretrainedConfig) -> Shapes | None:
        """The checkpoint's tensors where they are not those of the network."""
        return None

    def convert(
        self, tensors: Iterable[tuple[str, torch.Tensor]], config: PretrainedConfig
    ) -> dict[str, torch.Tensor]:
        """The network's tensors, made of those of the `layout`."""
        return dict(tensors)

    def longest(self, config: PretrainedConfig) -> int | None:
        """Tokens that it takes where its positions have no end, unless guerdon.json says more."""
        return None

    def ending(self, config: PretrainedConfig) -> int | None:
        """The token that every sequence must end with, added where it does not."""
        return None

    def gate(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The tokens at whose last occurrence's first one a gate reads; empty without a gate."""
        return ()

    def marks(self, config: PretrainedConfig) -> Mapping[str, int]:
        """The tokens before the prompt and either answer, and their ids; empty unless pairwise."""
        return {}

    def complete(self, manifest: Manifest | None) -> Manifest:
        """The manifest, with what is known of the model filled in.

        Raises:
            CheckpointRefused: it says what cannot be.
        """
        given = manifest or Manifest()
        if given.kind not in ("sequence", self.kind.value) or given.attributes:
            what = "attributes" if given.attributes else f"kind = {given.kind}"
            raise CheckpointRefused(
                f"{what} can't be given for a published {self.name}, whose kind "
                f"({self.kind.value}) and outputs are its own: leave it out of guerdon.json"
            )
        return self.fill(given)

    def fill(self, manifest: Manifest) -> Manifest:
        """A manifest that says nothing wrong, with what is known of the model."""
        return manifest

    def foreign_code(self, auto_map: object) -> str:
        """The first thing in an `auto_map` that is not this model's own code; empty if none."""
        named = auto_map.values() if isinstance(auto_map, Mapping) else [auto_map]
        for entry in named:
            for reference in entry if isinstance(entry, list) else [entry]:
                # `repository--module.Class` names the same code elsewhere.
                found = str(reference).split("--")[-1]
                if reference is not None and not {found, found.split(".")[-1]} & set(self.code):
                    return str(reference)
        return ""


class AttributesAdapter(Adapter):
    """A published model of several attributes. Its logits are the score, then the attributes."""

    kind = ModelKind.ATTRIBUTES
    attributes: ClassVar[tuple[str, ...]]
    """The outputs' names."""

    @property
    def labels(self) -> int:
        """The score and the attributes."""
        return 1 + len(self.attributes)

    def fill(self, manifest: Manifest) -> Manifest:
        """The attributes; none has a fixed weight, which the model gives anew for every prompt."""
        weights = dict.fromkeys(self.attributes, 0.0)
        return dataclasses.replace(manifest, kind="attributes", attributes=weights)
