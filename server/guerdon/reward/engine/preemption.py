"""Lets a batch stand aside between its layers, for another that is computed on its thread.

A forward pass can't be stopped within a layer, but all that one layer hands to the next lies in
tensors of its own: another batch, of the same model or of another one, may be computed from its
first to its last layer in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_between_layers: ContextVar[Callable[[], None] | None] = ContextVar("between_layers", default=None)


@contextmanager
def preemptible(between_layers: Callable[[], None] | None) -> Iterator[None]:
    """Have a function called between the layers of each batch that is computed in this context.

    Args:
        between_layers: computes what is more urgent, if there is any; None for nothing.
    """
    token = _between_layers.set(between_layers)
    try:
        yield
    finally:
        _between_layers.reset(token)


def between_layers() -> Callable[[], None]:
    """What a batch that begins now calls between its layers."""
    return _between_layers.get() or _nothing


def _nothing() -> None:
    pass
