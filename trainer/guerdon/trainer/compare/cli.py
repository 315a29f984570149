"""`guerdon compare RUN …`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from guerdon.trainer.common.settings_options import plain_errors

REPORT = Path("comparison.html")

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folders of guerdon train, whatever recipe trained the policy, or of guerdon eval "
            "policy (give that of the policy they began from, too).",
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help=f"The report, one HTML file. [dim](default: {REPORT})[/dim]",
            show_default=False,
        ),
    ] = None,
    json_: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print everything as JSON on standard output; a report only with --output.",
        ),
    ] = False,
) -> None:
    """Put runs side by side: one table, reward against KL, and where held-out rewards part.

    A run is shown by the evaluation in RUN/evaluation (guerdon eval policy, of RUN/final), else by
    what it measured itself. Runs that were measured on other prompts, by other reward models or
    with other sampling settings are kept apart, and the report says so.
    """
    with plain_errors():
        _compare(runs, output, as_json=json_)


def _compare(paths: list[Path], output: Path | None, *, as_json: bool) -> None:
    from rich.console import Console

    from guerdon.trainer.compare import show
    from guerdon.trainer.compare.comparison import compare
    from guerdon.trainer.compare.run_folders import read_runs

    target = output if output is not None or as_json else REPORT
    if target is not None:
        _check(target)
    groups = compare(read_runs(paths))
    if as_json:
        typer.echo(json.dumps(show.as_json(groups), indent=2, allow_nan=False, ensure_ascii=False))
    else:
        narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
        show.show(groups, Console(width=None if narrow else 2 * show.WIDE))
    if target is not None:
        from guerdon.trainer.compare.page import page

        _write(target, page(groups))
        console = Console(stderr=as_json or not sys.stdout.isatty())
        console.print(f"report: {target}", markup=False, highlight=False, soft_wrap=True)


def _check(target: Path) -> None:
    """Refuse to replace what is no report of ours.

    Raises:
        OutputError: something else is there.
    """
    from guerdon.trainer.common.errors import OutputError
    from guerdon.trainer.compare.page import GENERATOR

    if target.is_dir():
        raise OutputError(f"{target} is a folder: --output is the report's file")
    if not target.exists():
        return
    try:
        with target.open("rb") as file:
            ours = GENERATOR.encode() in file.read(1000)
    except OSError as error:
        raise OutputError(f"can't read {target}: {error}") from error
    if not ours:
        raise OutputError(f"{target} is there and is no report of guerdon compare: not replaced")


def _write(target: Path, text: str) -> None:
    from guerdon.trainer.common.errors import OutputError
    from guerdon.trainer.common.run_folder import write_whole

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except OSError as error:
        raise OutputError(f"can't write {target}: {error}") from error
