"""Lines of input become rows of output: scored as they come, written in their order.

Memory holds only a window of rows, so an input of any length streams through.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guerdon.cli.errors import CommandError, ExitCode
from guerdon.cli.output import Output, pass_through
from guerdon.cli.progress import Progress
from guerdon.data import JsonLine, JsonLines, RowError, parse_questions, write_row

if TYPE_CHECKING:
    from guerdon.client import AsyncRewardClient, Item, Score, ScoringOptions

WINDOW = 4
"""Rows held per item in flight: finished ones wait here for a slow one before them."""

Annotate = Callable[[Sequence["Score"]], Mapping[str, Any]]
"""What a row's scores, in the order of its responses, add to the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowJob:
    """What to do with every row."""

    model: str
    """A name; `name@revision` so that a promotion half-way can't mix revisions."""
    source: str | None
    """The input's path; none, or `-`, for standard input."""
    annotate: Annotate
    in_flight: int
    skip: bool
    """Whether a bad row gets an `error` and the run goes on."""
    score_options: ScoringOptions
    """Keyword arguments of the client's `score_stream`."""
    ranks_only: bool = False
    """Whether the model only ranks: it is asked for one row at a time."""

    @property
    def path(self) -> Path | None:
        """The input's path; None for standard input."""
        return None if self.source in (None, "-") else Path(self.source)


@dataclass(slots=True)
class _Row:
    line: JsonLine
    scores: list[Sequence[Score] | None] = field(default_factory=list)
    """One entry per question; None while it is in flight."""
    error: Exception | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or all(part is not None for part in self.scores)


class Pipeline:
    """Scores the lines that are left and writes them in order.

    Args:
        job: what to do.
        output: where rows go.
        progress: who is told.
        position: how many bytes of the input have been read.
    """

    def __init__(
        self, job: RowJob, output: Output, progress: Progress, position: Callable[[], int]
    ) -> None:
        self._job = job
        self._output = output
        self._progress = progress
        self._position = position
        self._rows: deque[_Row] = deque()
        self._asked: dict[int, tuple[_Row, int]] = {}
        self._window = asyncio.Semaphore(job.in_flight * WINDOW)
        self._stop: Exception | None = None

    async def run(self, client: AsyncRewardClient, lines: AsyncIterator[JsonLine]) -> None:
        """Scores everything.

        Raises:
            CommandError: a row failed and bad rows are not skipped; the rows before it
                are written.
            GuerdonError: the server can't be used any more; the rows before are written.
        """
        job, items = self._job, self._items(lines)
        if job.ranks_only:
            from guerdon.cli.comparing import rank_stream

            results = rank_stream(
                client, job.model, items, in_flight=job.in_flight, **job.score_options
            )
        else:
            results = client.score_stream(
                job.model, items, in_flight=job.in_flight, **job.score_options
            )
        async with aclosing(results):
            async for result in results:
                row, part = self._asked.pop(result.index)
                if result.error is not None:
                    self._refuse(row, result.error)
                else:
                    assert result.scores is not None
                    row.scores[part] = result.scores
                self._write_ready()
                if self._stop is not None and not self._asked:
                    break  # the input may be a pipe that has nothing more to say for hours
        self._write_ready()
        if self._stop is not None:
            raise self._stop

    async def _items(self, lines: AsyncIterator[JsonLine]) -> AsyncGenerator[Item, None]:
        asked = 0
        try:
            async for line in lines:
                await self._window.acquire()
                if self._stop is not None:
                    return
                row = _Row(line)
                self._rows.append(row)
                for part, item in enumerate(self._to_ask(row)):
                    self._asked[asked] = row, part
                    asked += 1
                    yield item
                if row.error is not None:
                    self._write_ready()
                if self._stop is not None:
                    return
        except Exception as exc:  # the input or the output fails; the client is not to wrap it
            self._halt(exc)

    def _to_ask(self, row: _Row) -> list[Item]:
        from guerdon.client import InvalidArgument, Item

        try:
            if row.line.row is None:
                assert row.line.error is not None
                raise row.line.error
            items = [Item(q.asked, q.responses) for q in parse_questions(row.line.row)]
        except (RowError, InvalidArgument) as exc:
            self._refuse(row, exc)
            return []
        row.scores = [None] * len(items)
        return items

    def _refuse(self, row: _Row, error: Exception) -> None:
        """A row has failed. Unless it alone is at fault and such rows are skipped, we stop."""
        row.error = row.error or error
        if self._stop is None and not (self._job.skip and _at_fault(error)):
            self._halt(error)

    def _halt(self, error: Exception) -> None:
        self._stop = error
        self._window.release()  # the feeder may be waiting for room that never comes

    def _write_ready(self) -> None:
        """Writes the rows at the head of the window that are finished."""
        out = bytearray()
        tally = self._progress.tally
        while self._rows and self._rows[0].done:
            row = self._rows[0]
            if row.error is not None and not (self._job.skip and _at_fault(row.error)):
                self._stop = self._final(row)
                break
            self._rows.popleft()
            self._window.release()
            out += self._finished(row)
            tally.rows += 1
        if out:
            self._output.write(bytes(out))
            self._progress.update(self._position())

    def _final(self, row: _Row) -> Exception:
        """The error of the first row that has one, with its line."""
        assert row.error is not None
        if not _at_fault(row.error):
            return row.error
        from guerdon.cli.connection import remedy

        where = f"{self._job.path or 'standard input'}, line {row.line.number}"
        return CommandError(f"{where}: {_reason(row.error)}{remedy(row.error)}", ExitCode.USAGE)

    def _finished(self, row: _Row) -> bytes:
        tally = self._progress.tally
        base = pass_through(row.line.row or {})
        if row.error is not None:
            tally.failed += 1
            where = f"line {row.line.number}: "
            return write_row({**base, "scores": None, "error": where + _reason(row.error)})
        scores = [score for part in row.scores for score in part or ()]
        tally.scores += len(scores)
        tally.tokens += sum(score.token_count for score in scores)
        tally.truncated += sum(score.truncated_tokens > 0 for score in scores)
        tally.dropped += sum(bool(score.dropped) for score in scores)
        return write_row({**base, **self._job.annotate(scores)})


def _reason(error: Exception) -> str:
    if isinstance(error, RowError):
        return f"{error.field}: {error.reason}" if error.field else error.reason
    return str(error)


def _at_fault(error: Exception) -> bool:
    """Whether the row is at fault, and not the server or the whole run."""
    if isinstance(error, RowError):
        return True
    from guerdon.cli.connection import is_row_error

    return is_row_error(error)


async def each_line(lines: Iterator[JsonLine], *, live: bool) -> AsyncIterator[JsonLine]:
    """Lines as an asynchronous iterator.

    Args:
        lines: the lines.
        live: whether reading may block for long, as a pipe does. Then a thread reads, so
            that finished rows are written while the next line is awaited; otherwise the
            reads are short and done in place.
    """
    if not live:
        for line in lines:
            yield line
        return
    async for line in _from_thread(lines):
        yield line


async def _from_thread(lines: Iterator[JsonLine]) -> AsyncIterator[JsonLine]:
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    box: queue.Queue[JsonLine | BaseException | None] = queue.Queue(maxsize=64)

    def put(entry: JsonLine | BaseException | None) -> None:
        box.put(entry)
        try:
            loop.call_soon_threadsafe(arrived.set)
        except RuntimeError:  # the loop was closed: interrupted
            raise SystemExit from None

    def read() -> None:
        try:
            for line in lines:
                put(line)
            put(None)
        except Exception as exc:
            put(exc)

    threading.Thread(target=read, name="guerdon-input", daemon=True).start()
    while True:
        arrived.clear()
        try:
            entry = box.get_nowait()
        except queue.Empty:
            await arrived.wait()
            continue
        if entry is None:
            return
        if isinstance(entry, BaseException):
            raise entry
        yield entry


def open_input(path: str | None) -> tuple[JsonLines, bool]:
    """The input's lines, and whether it is live (a pipe or a terminal).

    Standard input is opened a second time, because a thread that waits in `sys.stdin`
    would hold a lock that the interpreter wants when it ends.
    """
    if path is None or path == "-":
        stream = os.fdopen(os.dup(0), "rb")
        return JsonLines(stream), not stream.seekable()
    lines = JsonLines(path)
    return lines, not lines.seekable()
