"""`guerdon score`: rows in, the same rows with scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from guerdon.cli import options as opt
from guerdon.cli.job import FileJob, run

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions
    from guerdon.client import Score


@opt.connects(timeout=600.0)
def score(
    *,
    model: opt.Model,
    source: opt.Input = None,
    output: opt.OutputFile = None,
    connection: ServerOptions,
    wait: opt.Wait = opt.DEFAULT_WAIT,
    priority: opt.PriorityOption = opt.Priority.BATCH,
    truncation: opt.TruncationOption = opt.Truncation.REJECT,
    reject_dropped_text: opt.RejectDroppedText = False,
    reject_control_tokens: opt.RejectControlTokens = False,
    activation: opt.ActivationOption = opt.Activation.NONE,
    normalize: opt.Normalize = False,
    details: opt.Details = False,
    on_error: opt.OnErrorOption = opt.OnError.STOP,
    in_flight: opt.InFlight = 64,
    restart: opt.Restart = False,
    progress: opt.ProgressOption = None,
) -> int:
    """Score the rows of a JSON lines file, or of standard input.

    A row is {"prompt": text or [messages], "responses": [text, …]}, or {"chosen": …,
    "rejected": …} (messages or HH-RLHF transcripts), or {"messages": [ … ]}, whose last turn
    is the response. The output row is the input row with "scores": [number, …] in order.

    With -o, an interrupted run is continued by the same command.
    """
    from guerdon.cli.connection import score_options

    made_by = {
        "truncation": truncation.value,
        "activation": activation.value,
        "normalize": normalize,
        "details": details,
        "reject_dropped_text": reject_dropped_text,
        "reject_control_tokens": reject_control_tokens,
    }
    return run(
        FileJob(
            command="score",
            connection=connection,
            model=model,
            source=source,
            output=output,
            annotate=_with_details if details else _scores,
            in_flight=in_flight,
            skip=on_error is opt.OnError.SKIP,
            restart=restart,
            wait=wait,
            progress=progress,
            score_options=score_options(
                priority,
                truncation,
                activation,
                normalize,
                connection.timeout,
                reject_dropped_text=reject_dropped_text,
                reject_control_tokens=reject_control_tokens,
            ),
            made_by=made_by,
        )
    )


def _scores(scores: Sequence[Score]) -> Mapping[str, Any]:
    return {"scores": [score.score for score in scores]}


def _with_details(scores: Sequence[Score]) -> Mapping[str, Any]:
    details = [{k: v for k, v in asdict(s).items() if k != "score"} for s in scores]
    return {**_scores(scores), "details": details}
