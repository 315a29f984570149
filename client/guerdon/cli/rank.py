"""`guerdon rank`: answers to one prompt, best first."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guerdon.cli import options as opt
from guerdon.cli.errors import CommandError, ExitCode
from guerdon.cli.job import FileJob, run

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions
    from guerdon.client import RankedCandidate, Score, ScoringOptions


@opt.connects(timeout=600.0)
def rank(
    *,
    model: opt.Model,
    source: opt.Input = None,
    output: opt.OutputFile = None,
    prompt: Annotated[
        str | None, typer.Option(help="Rank answers to this prompt, given by --candidate.")
    ] = None,
    candidate: Annotated[
        list[str] | None, typer.Option(help="An answer to --prompt; give it several times.")
    ] = None,
    top_n: Annotated[int, typer.Option(min=0, help="How many to show; 0 for all.")] = 0,
    connection: ServerOptions,
    wait: opt.Wait = opt.DEFAULT_WAIT,
    priority: opt.PriorityOption = opt.Priority.BATCH,
    truncation: opt.TruncationOption = opt.Truncation.REJECT,
    reject_dropped_text: opt.RejectDroppedText = False,
    reject_control_tokens: opt.RejectControlTokens = False,
    on_error: opt.OnErrorOption = opt.OnError.STOP,
    in_flight: opt.InFlight = 64,
    restart: opt.Restart = False,
    progress: opt.ProgressOption = None,
) -> int:
    """Order the responses of each row, best first; or the candidates to one prompt.

    Rows are those of `guerdon score`. The output row gains "ranking", the responses' places
    (from 0), best first and --top-n of them, and "scores" of all responses in their order.
    Equal scores keep the order of the row.

    A pairwise model compares every two answers in both orders, n·(n − 1) comparisons of n
    answers; its scores hold within their row only.
    """
    from guerdon.cli.connection import score_options

    options = score_options(
        priority,
        truncation,
        opt.Activation.NONE,
        False,
        connection.timeout,
        reject_dropped_text=reject_dropped_text,
        reject_control_tokens=reject_control_tokens,
    )
    if prompt is not None or candidate:
        if source is not None or output is not None:
            raise CommandError("--prompt and --candidate go without files.", ExitCode.USAGE)
        return _table(connection, model, prompt, candidate or [], top_n, wait, options)

    def annotate(scores: Sequence[Score]) -> Mapping[str, Any]:
        values = [score.score for score in scores]
        order = sorted(range(len(values)), key=lambda i: -values[i])
        return {"ranking": order[: top_n or None], "scores": values}

    return run(
        FileJob(
            command="rank",
            connection=connection,
            model=model,
            source=source,
            output=output,
            annotate=annotate,
            in_flight=in_flight,
            skip=on_error is opt.OnError.SKIP,
            restart=restart,
            wait=wait,
            progress=progress,
            score_options=options,
            made_by={
                "truncation": truncation.value,
                "top_n": top_n,
                "reject_dropped_text": reject_dropped_text,
                "reject_control_tokens": reject_control_tokens,
            },
        )
    )


def _table(
    connection: ServerOptions,
    model: str,
    prompt: str | None,
    candidates: Sequence[str],
    top_n: int,
    wait: float,
    options: ScoringOptions,
) -> int:
    """Ranks answers given on the command line and prints them, best first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not prompt or not candidates:
        raise CommandError("--prompt and --candidate go together.", ExitCode.USAGE)

    async def ask() -> Sequence[RankedCandidate]:
        async with connection.first(wait).open() as client:
            await client.get_model(model)
        async with connection.open() as client:
            ranking = await client.rank(model, prompt, candidates, top_n=top_n or None, **options)
            return ranking.ranking

    ranked = asyncio.run(ask())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("score", justify="right")
    table.add_column("candidate", overflow="fold")
    for place, entry in enumerate(ranked, 1):
        table.add_row(str(place), f"{entry.score.score:.4f}", Text(candidates[entry.index]))
    Console().print(table)
    return ExitCode.OK
