"""`guerdon eval …`: how good is what is served? Nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guerdon.cli import options as opt
from guerdon.trainer.common.settings_options import plain_errors
from guerdon.trainer.evaluate.policy.cli import policy

if TYPE_CHECKING:
    from guerdon.cli.connection import ServerOptions
    from guerdon.client import RewardClient
    from guerdon.trainer.common.data.rows import Rows
    from guerdon.trainer.evaluate.comparison_scores import ComparisonScores

app = typer.Typer(help="Evaluate served reward models, and policies.", no_args_is_help=True)
app.command("policy")(policy)


@app.command("reward")
@opt.connects(timeout=300.0)
def reward(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Preference pairs: a file (JSON Lines, JSON array, Parquet) or a `datasets` set.",
        ),
    ],
    *,
    model: opt.Model,
    against: Annotated[
        str | None, typer.Option(help="Another served model, to compare it with.")
    ] = None,
    connection: ServerOptions,
    split: Annotated[str, typer.Option(help="Of a data set; files have none.")] = "test",
    subset_field: Annotated[
        str, typer.Option(help="Field of a row that names its part.")
    ] = "subset",
    limit: Annotated[int, typer.Option(min=0, help="First so many rows; 0 takes all.")] = 0,
    on_error: opt.OnErrorOption = opt.OnError.STOP,
    json_: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON on standard output.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write every row's scores here (JSONL).")
    ] = None,
    in_flight: opt.InFlight = 64,
    truncation: opt.TruncationOption = opt.Truncation.REJECT,
    wait: opt.Wait = opt.DEFAULT_WAIT,
) -> None:
    """Accuracy of a reward model on pairs, by part, with calibration, length bias and speed.

    A row is a pair as for `guerdon train reward`, or has lists of texts in `chosen` and `rejected`
    (RewardBench 2). RewardBench's own subsets give its sections too.
    """
    from guerdon.cli.connection import score_options

    options = score_options(
        opt.Priority.BATCH, truncation, opt.Activation.NONE, False, connection.timeout
    )
    with plain_errors():
        rows = _read(data, split, subset_field, limit, skip=on_error is opt.OnError.SKIP)
        names = [model] + ([against] if against else [])
        with connection.first(wait).rewards() as client:
            for name in names:
                client.get_model(name)
        with connection.rewards() as client:
            by_model = [
                _score(client, name, rows, in_flight, options, on_error is opt.OnError.SKIP)
                for name in names
            ]
        _say(rows, by_model, output, as_json=json_)


def _read(data: str, split: str, subset_field: str, limit: int, *, skip: bool) -> Rows[Any]:
    from guerdon.trainer.common.data.rows import read_rows
    from guerdon.trainer.common.errors import DataError
    from guerdon.trainer.evaluate.comparisons import parser

    rows = read_rows(
        data, parser(subset_field), split=split, limit=limit, bad_rows="skip" if skip else "stop"
    )
    if not rows.rows:
        raise DataError(f"{data} holds no pair")
    return rows


def _score(
    client: RewardClient, name: str, rows: Rows[Any], in_flight: int, options: Any, skip: bool
) -> ComparisonScores:
    from rich.console import Console

    from guerdon.trainer.common.progress import Bar
    from guerdon.trainer.evaluate.comparison_scores import score_comparisons

    places = [f"{rows.source}, line {line}" for line in rows.lines]
    total = sum(len(comparison.items()) for comparison in rows.rows)
    with Bar(Console(stderr=True), name, total) as bar:
        return score_comparisons(
            client,
            name,
            rows.rows,
            places,
            in_flight=in_flight,
            options=options,
            skip=skip,
            progress=bar.move,
        )


def _say(
    rows: Rows[Any], by_model: list[ComparisonScores], output: Path | None, *, as_json: bool
) -> None:
    from rich.console import Console

    from guerdon.trainer.common.errors import DataError
    from guerdon.trainer.evaluate.findings import agreement, findings
    from guerdon.trainer.evaluate.report import show

    if any(all(scores is None for scores in model.scores) for model in by_model):
        raise DataError(f"{rows.source}: the server refuses every row")
    found: dict[str, Any] = {
        "data": rows.source,
        "sha256": rows.sha256,
        "bad_rows": len(rows.bad),
        "bad_lines": [error.line for error in rows.bad[:20]],
        "models": [findings(rows.rows, model) for model in by_model],
    }
    if len(by_model) == 2:
        found["agreement"] = agreement(rows.rows, *by_model)
    if output is not None:
        _write(output, rows, by_model)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False, ensure_ascii=False))
        return
    console = Console()
    if rows.bad:
        lines = ", ".join(str(error.line) for error in rows.bad[:20])
        console.print(
            f"[yellow]{len(rows.bad)} malformed rows were skipped (lines {lines})[/yellow]"
        )
    show(found, console)


def _write(output: Path, rows: Rows[Any], by_model: list[ComparisonScores]) -> None:
    from guerdon.trainer.common.errors import OutputError
    from guerdon.trainer.common.run_folder import write_whole

    lines = []
    for place, line in enumerate(rows.lines):
        row: dict[str, Any] = {"line": line, "subset": rows.rows[place].subset}
        for key, model in zip(("scores", "against"), by_model, strict=False):
            scores = model.scores[place]
            row[key] = scores and {"chosen": scores[0].tolist(), "rejected": scores[1].tolist()}
            if place in model.refused:
                row[f"{key}_error"] = model.refused[place]
        lines.append(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
    try:
        write_whole(output, "".join(lines))
    except OSError as error:
        raise OutputError(f"can't write {output}: {error}") from error
