"""The policy's weights as a checkpoint names them: LoRA merged, tied tensors once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from guerdon.client.policy_types import Canary, TensorSpec
from guerdon.trainer.common.models.language_model import plain_attention, unwrapped
from guerdon.trainer.common.services.types import Ints
from guerdon.trainer.common.services.weights import Weights

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class CheckpointExport:
    """How the weights of a training model become those of a checkpoint."""

    lora: dict[str, float]
    """Modules with LoRA, by their name without it, and their scaling."""
    transposed: frozenset[str]
    """Those of them whose weight is [in, out]."""
    tied: frozenset[str]
    """Names that are left out: another name has the same tensor."""
    exact: frozenset[str]
    """Names that autocast leaves in float32: norms, and embeddings that are only looked up."""

    @classmethod
    def of(cls, lm: Any) -> CheckpointExport:
        """The export of a model, before it is wrapped or sharded."""
        lora = {
            _plain(name): float(module.scaling[_ADAPTER])
            for name, module in lm.named_modules()
            if hasattr(module, "lora_A") and _ADAPTER in getattr(module, "scaling", {})
        }
        transposed = {
            _plain(name)
            for name, module in lm.named_modules()
            if hasattr(module, "lora_A") and module.fan_in_fan_out
        }
        seen: dict[int, str] = {}
        tied = set()
        for name, parameter in lm.named_parameters(remove_duplicate=False):
            if seen.setdefault(id(parameter), name) != name:
                tied.add(_plain(name))
        return cls(lora, frozenset(transposed), frozenset(tied), _never_rounded(lm))

    def published(
        self, state: Mapping[str, Tensor], dtype: str, *, computed: str
    ) -> dict[str, Tensor]:
        """The tensors of a plain model, from the whole state of a `PolicyModel`.

        A model that is computed in bfloat16 is the function of its *rounded* weights, so a sampler
        in float32 is given those: it would otherwise see every small update that the learner does
        not, and draw from another policy (on SmolLM2, after 12 steps of PPO, a KL of 0.14 nats a
        token; rounded, 0.001). LoRA is added to the rounded weight and not rounded again, since
        the learner adds its part to the output. A sampler in bfloat16 must round the sum, and
        loses what is under half a bit of the weight; `mismatch_kl` says how much.

        Where nothing is rounded they are the very ones that train: read them before the next step.

        Args:
            state: names as in the training model.
            dtype: `float32`, `bfloat16` or `float16`.
            computed: the same, of the learner's computation.
        """
        kind, rounded = getattr(torch, dtype), getattr(torch, computed)
        own = {name[3:]: tensor for name, tensor in state.items() if name.startswith("lm.")}
        found = {}
        for name, tensor in own.items():
            if ".lora_" in name or _plain(name) in self.tied:
                continue
            plain = _plain(name)
            seen = tensor.detach() if plain in self.exact else tensor.detach().to(rounded)
            found[plain] = self._merged(name, seen, own, rounded).to(kind)
        return found

    def _merged(
        self, name: str, tensor: Tensor, own: Mapping[str, Tensor], rounded: torch.dtype
    ) -> Tensor:
        if not name.endswith(".base_layer.weight"):
            return tensor
        stem = name.removesuffix(".base_layer.weight")
        up, down = (
            own[f"{stem}.{part}.{_ADAPTER}.weight"].detach().to(rounded).float()
            for part in ("lora_B", "lora_A")
        )
        delta = self.lora[_plain(stem)] * (up @ down)
        return tensor.float() + (delta.T if _plain(stem) in self.transposed else delta)

    @torch.no_grad()
    def canaries(
        self, lm: Any, tensors: Mapping[str, Tensor], sequences: Sequence[Ints]
    ) -> list[Canary]:
        """Log-probabilities at temperature 1, by plain `transformers` with the published weights.

        The model's own code is called with the published tensors in the place of its own, so what
        is compared with the sampler is the very weights that are sent to it. They are computed in
        float32, whatever they are rounded to: that halves the difference to a sampler in bfloat16.
        """
        if not sequences or not tensors:
            return []
        device = next(iter(tensors.values())).device
        model = _skeleton(lm)
        exact = {name: tensor.float() for name, tensor in tensors.items()}
        missing, unknown = model.load_state_dict(exact, strict=False, assign=True)
        assert not unknown, unknown
        model.tie_weights()
        left = [name for name in missing if name not in self.tied]
        assert not left, left
        return [_canary(model, ids, device) for ids in sequences]

    def save(self, lm: Any, tensors: Mapping[str, Tensor], folder: Path, dtype: str) -> None:
        """A folder that `transformers` and vLLM load, but for the tokenizer."""
        base = unwrapped(lm)
        config = _config(base, getattr(torch, dtype))
        config.use_cache = True
        config.save_pretrained(folder)
        if getattr(base, "generation_config", None) is not None:
            # Its own `save_pretrained` refuses what it has loaded, as sampling values without
            # sampling: no reason to lose a run's result.
            base.generation_config.to_json_file(folder / "generation_config.json")
        named = as_checkpoint(lm, tensors)
        whole = {name: tensor.cpu().contiguous().clone() for name, tensor in named.items()}
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def _never_rounded(lm: Any) -> frozenset[str]:
    base = unwrapped(lm)
    looked_up, output = base.get_input_embeddings(), base.get_output_embeddings()
    layers = (m for m in base.modules() if isinstance(m, (nn.Linear, Conv1D)))
    linear = {id(parameter) for layer in layers for parameter in layer.parameters()}
    kept = set()
    for name, parameter in base.named_parameters():
        lookup = parameter is looked_up.weight and (
            output is None or output.weight is not parameter
        )
        if lookup or (parameter.ndim < 2 and id(parameter) not in linear):
            kept.add(_plain(name))
    return frozenset(kept)


def as_checkpoint(lm: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Under the names, and in the pieces, of the checkpoint that the model was loaded from.

    `transformers` renames some as it loads, and joins the experts of a layer.
    """
    return dict(revert_weight_conversion(unwrapped(lm), dict(tensors)))


def as_weights(version: int, tensors: Mapping[str, Tensor], canaries: Sequence[Canary]) -> Weights:
    """What the publisher sends."""
    specs = [
        TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]
    return Weights(version, specs, tensors.values, canaries)


def _config(base: Any, dtype: torch.dtype) -> Any:
    import copy

    config = copy.deepcopy(base.config)
    config._attn_implementation = plain_attention(base)
    config.dtype = dtype
    config.architectures = [type(base).__name__]
    return config


def _skeleton(lm: Any) -> Any:
    """The model without weights, but with its buffers."""
    from accelerate import init_empty_weights

    base = unwrapped(lm)
    with init_empty_weights(include_buffers=False):
        model = type(base)(_config(base, torch.float32))
    return model.eval()


def _canary(model: Any, ids: Ints, device: torch.device) -> Canary:
    tokens = torch.from_numpy(ids.astype("int64")).to(device)
    logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    logprobs = F.log_softmax(logits, dim=-1).gather(-1, tokens[1:, None])[:, 0]
    return Canary(ids.tolist(), logprobs.cpu().tolist())


def _plain(name: str) -> str:
    """A name in the training model as the checkpoint has it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
