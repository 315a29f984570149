"""How a command ends: exit codes, and an error that is one plain sentence."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the shell sees; documented in `guerdon --help` and docs/cli.md."""

    OK = 0
    FAILED = 1
    """The server refused or failed, or is unhealthy."""
    USAGE = 2
    """Wrong options, or bad input."""
    UNREACHABLE = 3
    """No server there, it went away, or it took too long."""
    ROWS_FAILED = 4
    """Done, but some rows have no score (`--on-error skip`)."""
    INTERRUPTED = 130
    """The user pressed Ctrl-C."""


EPILOG = "\n\n".join(
    (
        "Exit codes: 0 done; 1 the server failed, refused or is unhealthy, or training failed; 2 "
        "wrong options or bad input; 3 the server is unreachable, overloaded or too slow; 4 done, "
        "but rows failed with --on-error skip; 130 interrupted.",
        "Environment: GUERDON_SERVER, GUERDON_SAMPLER, GUERDON_TOKEN, GUERDON_ADMIN_TOKEN; "
        "GUERDON_DEBUG=1 shows tracebacks.",
    )
)


class CommandError(Exception):
    """A command can't go on.

    Args:
        message: one plain sentence for the person at the terminal.
        code: how the command exits.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code
