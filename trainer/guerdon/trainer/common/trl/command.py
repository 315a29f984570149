"""The command of a recipe around TRL's trainers. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import typer

from guerdon.settings import load, to_toml
from guerdon.trainer.common.process_group import process_group
from guerdon.trainer.common.processes import is_main
from guerdon.trainer.common.settings_options import Overwrite, Resume, recipe_command
from guerdon.trainer.common.trl.settings import FineTuneSettings

if TYPE_CHECKING:
    from rich.console import Console

    from guerdon.trainer.common.process_group import ProcessGroup
    from guerdon.trainer.common.trl.folder import FineTuneFolder
    from guerdon.trainer.common.trl.task import FineTuneTask


class FineTuneCommand(abc.ABC):
    """What a recipe tells the command line: its options, and what is imported when it runs."""

    options: type[FineTuneSettings]
    """The class whose fields are the options."""
    panels: Mapping[str, Sequence[str]]
    """Headings of `--help`."""
    help: str
    dry_run_help: ClassVar[str]

    def load(self, config: Path | None, given: Mapping[str, Any]) -> FineTuneSettings:
        """The settings of a TOML file with the command line's values over them.

        Raises:
            SettingsError: the file can't be read, or a key or a value is wrong.
        """
        return load(self.options, config, given)

    @abc.abstractmethod
    def folder(self, settings: Any) -> type[FineTuneFolder]:
        """The kind of folder that a run of these settings has."""

    @abc.abstractmethod
    def read_task(self, settings: Any) -> FineTuneTask[Any, Any]:
        """Load and check the data and the tokenizer.

        Raises:
            TrainingError: something is wrong; says what.
        """

    def train(
        self, task: Any, folder: Any, console: Console, processes: ProcessGroup
    ) -> dict[str, Any]:
        """Train, measure, save; the summary."""
        from guerdon.trainer.common.trl.recipe import fine_tune

        return fine_tune(task, folder, console, processes)

    @abc.abstractmethod
    def show_summary(self, summary: dict[str, Any], folder: Any, console: Console) -> None:
        """Show the result, and what to do with it."""

    def run(
        self, settings: FineTuneSettings, *, resume: bool, overwrite: bool, dry_run: bool
    ) -> None:
        """Do what the command was asked for.

        Raises:
            TrainingError: something is wrong; says what.
        """
        from rich.console import Console

        from guerdon.trainer.common.trackers import check_trackers

        main = is_main()
        console = Console(stderr=not sys.stdout.isatty(), quiet=not main)
        if dry_run:
            if main:
                check_trackers(settings.tracker)
                task = self.read_task(settings)
                task.show_counts(console)
                typer.echo(to_toml(settings))  # alone there: it can be a file
                task.show_memory(console)
            return
        with process_group() as processes:
            with processes.fail_together():
                check_trackers(settings.tracker)
                kind = self.folder(settings)
                folder = kind(settings, resume=resume, overwrite=overwrite, main=main)
            if processes.all_gather(folder.finished and not overwrite)[0]:
                console.print("this run ended already")
                summary = folder.summary() if main else {}
            else:
                with processes.fail_together():
                    task = self.read_task(settings)
                task.show_counts(console)
                summary = self.train(task, folder, console, processes)
        if main:
            self.show_summary(summary, folder, console)


def add_command(app: typer.Typer, command: FineTuneCommand) -> Any:
    """Add a recipe's command to `guerdon train`; the function that typer calls."""
    dry_run_option = typer.Option(False, "--dry-run", help=command.dry_run_help)

    @app.command(command.options.algorithm, help=command.help)
    @recipe_command(command.options, command.panels, command.load)
    def run(
        settings: FineTuneSettings,
        *,
        resume: Resume = False,
        overwrite: Overwrite = False,
        dry_run: bool = dry_run_option,
    ) -> None:
        command.run(settings, resume=resume, overwrite=overwrite, dry_run=dry_run)

    return run
