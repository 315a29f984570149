"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_SERVER = "localhost:50051"
DEFAULT_WAIT = 60.0
DEFAULT_SAMPLER = "localhost:50052"


class OnError(StrEnum):
    """What to do with a row that can't be scored."""

    STOP = "stop"
    SKIP = "skip"


class Priority(StrEnum):
    """Which queue the work waits in."""

    ONLINE = "online"
    BATCH = "batch"


class Truncation(StrEnum):
    """What to do with text that is longer than the model takes."""

    REJECT = "reject"
    PROMPT_LEFT = "prompt-left"


class Activation(StrEnum):
    """A function applied to the raw score."""

    NONE = "none"
    SIGMOID = "sigmoid"


Server = Annotated[
    str, typer.Option(envvar="GUERDON_SERVER", metavar="HOST:PORT", help="The reward server.")
]
Sampler = Annotated[
    str,
    typer.Option(
        "--server", envvar="GUERDON_SAMPLER", metavar="HOST:PORT", help="The policy sampler."
    ),
]
Token = Annotated[
    str | None,
    typer.Option(envvar="GUERDON_TOKEN", metavar="TOKEN", help="The server's access token."),
]
AdminToken = Annotated[
    str | None,
    typer.Option(envvar="GUERDON_ADMIN_TOKEN", metavar="TOKEN", help="The server's admin token."),
]
AdminServer = Annotated[
    str,
    typer.Option(
        envvar=["GUERDON_ADMIN_SERVER", "GUERDON_SERVER"],
        metavar="HOST:PORT",
        help="The reward server's admin port, or its only one.",
    ),
]
Tls = Annotated[
    bool, typer.Option("--tls", help="Encrypt, trusting the system's certificate authorities.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Encrypt, trusting the authorities in this PEM file."),
]
Timeout = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", min=0.001, help="Time allowed for one call or item."),
]
Wait = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", min=0, max=86_400, help="How long to wait for a server to be there."
    ),
]
Model = Annotated[
    str, typer.Option(help="The model's name, an alias, or name@revision.", show_default=False)
]
Input = Annotated[
    str | None,
    typer.Argument(
        metavar="[IN.jsonl]",
        help="Rows as JSON lines, gzipped or not; - or nothing for standard input.",
        show_default=False,
    ),
]
OutputFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT.jsonl",
        help="Where rows go, resumable; standard output when not given.",
        show_default=False,
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Drop what an earlier run left in the output.")
]
OnErrorOption = Annotated[
    OnError,
    typer.Option(
        "--on-error",
        help="A bad row ends the run (stop), or gets an `error` and null scores (skip).",
    ),
]
InFlight = Annotated[int, typer.Option(min=1, max=4096, help="Items sent before replies arrive.")]
ProgressOption = Annotated[
    bool | None,
    typer.Option(
        "--progress/--no-progress",
        help="Show progress on standard error; by default when that is a terminal.",
        show_default=False,
    ),
]
PriorityOption = Annotated[
    Priority, typer.Option(help="batch waits behind online work, with a guaranteed share.")
]
TruncationOption = Annotated[
    Truncation, typer.Option(help="Refuse what is too long, or cut its prompt from the left.")
]
Normalize = Annotated[
    bool, typer.Option("--normalize", help="Subtract the training set's mean, divide by its std.")
]
ActivationOption = Annotated[Activation, typer.Option(help="What is applied to the raw score.")]
RejectDroppedText = Annotated[
    bool,
    typer.Option(
        "--reject-dropped-text",
        help="Refuse conversations of which the model's chat template leaves text out.",
    ),
]
RejectControlTokens = Annotated[
    bool,
    typer.Option(
        "--reject-control-tokens",
        help="Refuse texts that spell a control token of the model, such as <|im_end|>.",
    ),
]
Details = Annotated[
    bool,
    typer.Option(
        "--details", help="Add `details`: steps, attributes, members, token counts per response."
    ),
]


def connects(
    *, timeout: float, server: Any = Server, token: Any = Token, limit: Any = Timeout
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that gives a command its server's options in the place of `connection`.

    The command gets a `guerdon.cli.connection.ServerOptions` for it.

    Args:
        timeout: the default.
        server: the option for the address; `token` and `limit` are those for token and timeout.
    """
    address = DEFAULT_SAMPLER if server is Sampler else DEFAULT_SERVER
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, option, default in (
            ("server", server, address),
            ("token", token, None),
            ("tls", Tls, False),
            ("tls_ca", TlsCa, None),
            ("timeout", limit, timeout),
        )
    ]

    def gather(values: dict[str, Any]) -> Any:
        from guerdon.cli.connection import ServerOptions

        return ServerOptions(**values)

    return add_options({each.name: each for each in options}, "connection", gather)


def add_options(
    options: Mapping[str, inspect.Parameter],
    place: str,
    gather: Callable[[dict[str, Any]], Any] = dict,
    *,
    last: bool = False,
) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that gives a command options in the place of one of its parameters.

    Args:
        options: by the keys under which their values are gathered.
        place: name of the parameter.
        gather: makes what the parameter is given of the values by key.
        last: whether the help lists them after the command's own options instead.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        del function.__annotations__[place]  # its type may be one that is imported when needed
        hints = typing.get_type_hints(function, include_extras=True)
        own = inspect.signature(function).parameters
        declared = [
            each.replace(annotation=hints[name]) for name, each in own.items() if name != place
        ]
        at = len(declared) if last else list(own).index(place)
        parameters = [*declared[:at], *options.values(), *declared[at:]]

        @functools.wraps(function)
        def command(**given: Any) -> Any:
            values = {key: given.pop(option.name) for key, option in options.items()}
            return function(**{place: gather(values)}, **given)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate
