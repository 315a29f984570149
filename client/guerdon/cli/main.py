"""The `guerdon` command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer
import typer.main

from guerdon.cli import admin, plugins, rank, score, status
from guerdon.cli.errors import EPILOG, CommandError, ExitCode
from guerdon.cli.help_texts import asks_for_help, unwrap

app = typer.Typer(
    name="guerdon",
    help="Reward models, served exactly and fast: score, rank, serve, train.",
    epilog=EPILOG,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"guerdon {version('guerdon')}")
        raise typer.Exit


@app.callback()
def _top(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


app.command("score", epilog=EPILOG)(score.score)
app.command("rank", epilog=EPILOG)(rank.rank)
app.command("models", epilog=EPILOG)(status.models)
app.command("policy", epilog=EPILOG)(status.policy)
app.command("health", epilog=EPILOG)(status.health)
app.add_typer(admin.app, name="admin")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and gives the exit code; prints errors as one sentence.

    Args:
        argv: the arguments after `guerdon`; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a server's goodbye is no news to a person
    try:
        code = _dispatch(args)
        sys.stdout.flush()
        if code == ExitCode.INTERRUPTED:
            typer.echo("guerdon: interrupted.", err=True)
    except BrokenPipeError:
        return _reader_left()
    return code


def _dispatch(args: list[str]) -> int:
    commands = plugins.discover()
    name = args[0] if args else ""
    try:
        if name in commands:
            plugin = typer.main.get_command(plugins.load(commands[name]))
            return _run(plugin, args[1:], f"guerdon {name}")
        for command in commands:
            app.command(command, help=plugins.summary(commands[command]))(_placeholder)
        return _run(typer.main.get_command(app), args or ["--help"], "guerdon")
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as exc:
        if name not in commands:
            raise
        return _fail(plugins.missing(name, exc))
    except Exception as exc:
        return _fail(exc)


def _placeholder() -> None:
    raise AssertionError("commands of other parts are dispatched before typer sees them")


def _run(command: Any, args: list[str], prog_name: str) -> int:
    """Runs a command; usage errors come out as exceptions, like all others."""
    if asks_for_help(args):
        unwrap(command)
    try:
        result = command.main(args=args, prog_name=prog_name, standalone_mode=False)
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer makes an exit of it
            raise exc.__context__ from None
        raise
    return result if isinstance(result, int) else ExitCode.OK


def _fail(exc: Exception) -> int:
    if os.environ.get("GUERDON_DEBUG") == "1":
        raise exc
    for sentence in (_ours, _usage, _from_client, _from_system):
        found = sentence(exc)
        if found is not None:
            break
    else:
        found = f"{type(exc).__name__}: {exc} (GUERDON_DEBUG=1 shows where)", ExitCode.FAILED
    message, code = found
    if message:
        typer.echo(f"guerdon: {' '.join(message.split())}", err=True)
    return code


_Sentence = tuple[str, int]


def _ours(exc: Exception) -> _Sentence | None:
    return (str(exc), exc.code) if isinstance(exc, CommandError) else None


def _usage(exc: Exception) -> _Sentence | None:
    """Typer's own errors, which have no public base class that all its versions share."""
    show: Callable[[], None] | None = getattr(exc, "show", None)
    describe: Callable[[], str] | None = getattr(exc, "format_message", None)
    if show is None or describe is None:
        return None
    if type(exc).__name__ == "NoArgsIsHelpError":
        show()
        return "", ExitCode.USAGE
    context = getattr(exc, "ctx", None)
    hint = f" Try '{context.command_path} --help'." if context is not None else ""
    return describe() + hint, int(getattr(exc, "exit_code", ExitCode.USAGE))


def _from_client(exc: Exception) -> _Sentence | None:
    if "guerdon.client" not in sys.modules:
        return None
    from guerdon.cli.connection import explain

    return explain(exc)


def _from_system(exc: Exception) -> _Sentence | None:
    if not isinstance(exc, OSError):
        return None
    where = f"{exc.filename}: " if exc.filename else ""
    return f"{where}{exc.strerror or exc}.", ExitCode.USAGE


def _reader_left() -> int:
    """The reader of our output has gone (`| head`): end quietly, as other tools do."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13


if __name__ == "__main__":
    sys.exit(main())
