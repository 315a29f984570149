"""What `guerdon score` and `guerdon rank` share: a file in, a file out, a server between."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.cli.output import FileOutput, Kept, Output, open_output
from guerdon.cli.pipeline import Pipeline, RowJob, each_line, open_input
from guerdon.cli.progress import Progress
from guerdon.data import JsonLine, JsonLines, NotJsonLines

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob(RowJob):
    """A command over the rows of a file."""

    command: str
    connection: ServerOptions
    output: Path | None
    restart: bool
    wait: float
    """Seconds to wait for a server that is not there yet, or is starting."""
    progress: bool | None
    made_by: Mapping[str, Any]
    """Options that change what is written; a run is resumed only under the same."""


def run(job: FileJob) -> ExitCode:
    """Does the job and says how it ended.

    Raises:
        CommandError, GuerdonError, OSError: it could not go on.
    """
    _check_paths(job)
    try:
        lines, live = open_input(job.source)
    except NotJsonLines as error:
        name = job.source if job.path else "standard input"
        raise CommandError(f"{name}: {error}", ExitCode.USAGE) from error
    with lines:
        return asyncio.run(_run(job, lines, live))


async def _run(job: FileJob, lines: JsonLines, live: bool) -> ExitCode:
    async with job.connection.first(job.wait).open() as client:
        info = await client.get_model(job.model)
    async with job.connection.open() as client:
        if info.ranks_only and job.command != "rank":
            raise CommandError(
                f"The model {info.name} compares answers with each other and has no score for "
                "one: use `guerdon rank`."
            )
        made_by = {
            "command": job.command,
            "model": info.name,
            "revision": info.revision,
            **job.made_by,
        }
        output = open_output(job.output, made_by, restart=job.restart)
        with closing(output), Progress(job.progress, job.path) as progress:
            rest = iter(lines)
            kept = output.kept(rest)
            if kept.complete:
                progress.say(f"{job.output} is complete already ({kept.rows:,} rows).")
                return _code(kept, progress)
            progress.resumed(kept.rows)
            pipeline = Pipeline(
                replace(job, model=info.pinned, ranks_only=info.ranks_only),
                output,
                progress,
                lines.position,
            )
            await _score(pipeline, client, rest, live, output, progress)
            return _code(kept, progress)


async def _score(
    pipeline: Pipeline,
    client: Any,
    rest: Iterator[JsonLine],
    live: bool,
    output: Output,
    progress: Progress,
) -> None:
    try:
        await pipeline.run(client, each_line(rest, live=live))
    except BaseException:
        if isinstance(output, FileOutput):
            progress.say("What is finished is kept: the same command goes on from there.")
        raise
    output.finish()
    progress.say(progress.summary())


def _code(kept: Kept, progress: Progress) -> ExitCode:
    return ExitCode.ROWS_FAILED if kept.failed or progress.tally.failed else ExitCode.OK


def _check_paths(job: FileJob) -> None:
    if job.output is None or str(job.output) == "-":
        return
    if job.output.suffix == ".gz":
        raise CommandError(
            f"The output is plain JSON lines, not gzip: give {job.output} another name, "
            "or write to standard output and pipe it through gzip.",
            ExitCode.USAGE,
        )
    source = Path(job.source or "-")
    if source.is_file() and job.output.is_file() and source.samefile(job.output):
        raise CommandError(f"{source} is both the input and the output.", ExitCode.USAGE)
