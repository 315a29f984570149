"""What a run starts from, checked before anything is asked of a service, and its memory."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from guerdon.trainer.common.data.tokens import load_tokenizer
from guerdon.trainer.common.models.language_model import find_policy
from guerdon.trainer.common.models.memory import MemoryEstimate, measure
from guerdon.trainer.common.processes import is_main
from guerdon.trainer.common.report import say
from guerdon.trainer.common.services.inputs import (
    RunInputs,
    check_positions,
    check_services,
    check_verifiers,
    read_prompts,
    show_prompts,
)
from guerdon.trainer.rl.learner.policy import CHUNK
from guerdon.trainer.rl.settings import RunSettings


def read_inputs(settings: RunSettings) -> RunInputs:
    """Load and check all that can be wrong before a service is asked.

    Raises:
        TrainingError: something is; says what.
    """
    check_services(settings)
    policy, config = find_policy(settings.policy)
    tokenizer = load_tokenizer(policy)
    prompts = read_prompts(settings, tokenizer, config, limit=settings.prompts_limit)
    held_out = read_prompts(settings, tokenizer, config, "eval_prompts", limit=settings.eval_limit)
    if is_main():  # the one rank that scores: a function's process is started for this
        check_verifiers(settings, prompts, held_out)
    check_positions(config, settings.max_tokens, max(prompts.longest, held_out.longest))
    return RunInputs(policy, config, tokenizer, prompts, held_out)


def show_inputs(inputs: RunInputs, console: Console) -> None:
    """The prompts' sizes, and a warning for all that is odd."""
    for name, prompts in (("prompts", inputs.prompts), ("held out", inputs.eval_prompts)):
        show_prompts(name, prompts, console)
        if prompts.duplicates:
            say(console, f"  {prompts.duplicates} prompts occur more than once", "yellow")
        if prompts.reasoning_dropped:
            say(
                console,
                f"  {prompts.reasoning_dropped} prompts have reasoning in earlier turns, which the "
                "chat template leaves out",
                "yellow",
            )
        if prompts.names_dropped:
            text = "prompts have names, which the chat template leaves out"
            say(console, f"  {prompts.names_dropped} {text}", "yellow")
    if inputs.shared:
        say(console, f"  {inputs.shared} held-out prompts are trained on", "yellow")


def memory_estimate(settings: RunSettings, config: Any) -> MemoryEstimate:
    """What one process holds at the height of a step.

    Args:
        settings: of the run.
        config: of the policy, of `transformers`.

    Raises:
        TrainingError: there is no language model for the config.
    """
    tokens = settings.micro_batch_tokens
    return measure(config, settings.dtype, settings.lora_r).estimate(
        settings,
        tokens,
        min(CHUNK, tokens) if settings.chunks_logits else tokens,
        "a micro-batch",
        reference=settings.keeps_reference and not settings.lora_r,  # LoRA's is itself
        value_network=settings.trains_value_network,
    )
