"""The prompts of a run: read, rendered and tokenised once, and given out in a seeded order."""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from guerdon.data import (
    REASONING,
    ControlTokens,
    Dropped,
    Message,
    RowError,
    check_text,
    check_turns,
    parse_prompt,
    read_template_inputs,
)
from guerdon.models import file_hash
from guerdon.trainer.common.data.rows import (
    data_file,
    file_rows,
    is_table,
    missing_column,
    source_rows,
    table_rows,
)
from guerdon.trainer.common.data.same_prompts import conversation_key
from guerdon.trainer.common.data.tokens import check_embedded
from guerdon.trainer.common.errors import DataError
from guerdon.trainer.common.services.prompt_tokens import check_spelled, prompt_tokens
from guerdon.trainer.common.services.types import Ints, PromptRow, Task

MAX_KEPT_CHARACTERS = 4 << 30
"""Most characters of prompts and other columns, as JSON, that a run keeps in memory."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Prompts:
    """The rows of a prompts file with their tokens."""

    source: str
    sha256: str
    """SHA-256 of the file as it lies on disk; of a data set, of its rows."""
    rows: tuple[PromptRow, ...]
    lines: tuple[int, ...]
    """The line of each row in the file, from 1."""
    prompt_ids: tuple[Ints, ...]
    """Each row's rendered prompt, as the sampler gets it."""
    openings: tuple[str, ...]
    """What each rendered prompt's end writes of the answer itself, such as `<think>`."""
    duplicates: int
    """Rows whose prompt occurred before, word for word. They are kept."""
    reasoning_dropped: int = 0
    """Rows with reasoning in earlier turns that the chat template leaves out."""
    names_dropped: int = 0
    """Rows with names, of who speaks or which tool answers, that it leaves out."""
    answer_key: str = "answer"
    """The column of the rows' answers."""

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for ids in self.prompt_ids)

    @property
    def largest_id(self) -> int:
        """The largest token id in any prompt."""
        return max(int(ids.max()) for ids in self.prompt_ids)

    def tasks(self) -> list[Task]:
        """Every row once, in the file's order: for evaluations, which no `PromptOrder` rules."""
        return [self.task(index, index) for index in range(len(self))]

    def task(self, uid: int, index: int) -> Task:
        """A task of the row with this index."""
        return Task(uid, self.rows[index], self.prompt_ids[index], self.openings[index])


def load_prompts(
    path: str,
    tokenizer: Any,
    *,
    max_prompt_tokens: int,
    limit: int = 0,
    vocab_size: int | None = None,
    control_tokens: Literal["allow", "refuse"] = "allow",
    split: str = "train",
    prompt_key: str = "prompt",
    answer_key: str = "answer",
) -> Prompts:
    """Read, render and tokenise prompts.

    A row is `{"prompt": text, transcript or messages, "answer": optional text or number}`; its
    other columns are kept. Rows are read one after another; what they hold stays in memory, up to
    `MAX_KEPT_CHARACTERS`. The policy's chat template renders it, with the mark that opens the
    answer, given the row's `tools` and `chat_template_kwargs`; a tokenizer without a template takes
    plain text as it is.

    Args:
        path: JSON Lines, a JSON array or CSV, gzipped or not, or Parquet; a name of
            `PROJECT_DATA`; a folder that `datasets` saved; or a hub name, `OWNER/NAME[:CONFIG]`.
        tokenizer: the policy's, of `transformers`.
        max_prompt_tokens: a longer prompt is an error.
        limit: read only the first so many rows; 0 reads all.
        vocab_size: of the policy's embedding: a prompt with a larger token id is an error.
        control_tokens: whether a text may spell special tokens of the tokenizer, which then are
            special tokens of the prompt.
        split: of a data set; a file has none.
        prompt_key: the column of the prompt.
        answer_key: the column of the answer; every row must have another than `answer`.

    Raises:
        DataError: the file can't be read or holds no row, or a row is wrong or too long, or the
            template leaves text of it out; the first such row ends it, and its line is named.
    """
    reader = _RowReader(
        tokenizer,
        max_prompt_tokens,
        vocab_size,
        ControlTokens(tokenizer) if control_tokens == "refuse" else None,
        prompt_key,
        answer_key,
    )
    digest, characters, read = hashlib.sha256(), 0, list[_ReadRow]()
    try:
        for line, values in _source_rows(path, split):
            row = reader.read(line, values, len(read))
            kept = json.dumps([row.row.turns, row.row.extra], sort_keys=True)
            digest.update(kept.encode())
            characters += len(kept)
            if characters > MAX_KEPT_CHARACTERS:
                raise DataError(
                    f"{path} holds more than {MAX_KEPT_CHARACTERS >> 20} Mi characters by line "
                    f"{line}, and all would be in memory: take fewer prompts or columns"
                )
            read.append(row)
            if len(read) == limit:
                break
        sha256 = file_hash(data_file(path)) if data_file(path).is_file() else digest.hexdigest()
    except RowError as error:
        raise DataError(f"{path}, {error}") from error
    if not read:
        raise DataError(f"{path} holds no prompt")
    different = {conversation_key(row.row.turns, row.row.inputs) for row in read}
    return Prompts(
        path,
        sha256,
        tuple(row.row for row in read),
        tuple(row.line for row in read),
        tuple(row.ids for row in read),
        tuple(row.opening for row in read),
        len(read) - len(different),
        sum(not REASONING.isdisjoint(row.left_out) for row in read),
        sum(Dropped.NAME in row.left_out for row in read),
        answer_key,
    )


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row that may be sampled from."""

    line: int
    row: PromptRow
    ids: Ints
    opening: str
    left_out: frozenset[Dropped]
    """What the template leaves out of it."""


@dataclass(frozen=True)
class _RowReader:
    """Checks, renders and tokenises rows; its fields are as in `load_prompts`."""

    tokenizer: Any
    max_prompt_tokens: int
    vocab_size: int | None
    control: ControlTokens | None
    """Tokens that no text may spell."""
    prompt_key: str
    answer_key: str

    def read(self, line: int, values: dict[str, Any] | RowError, index: int) -> _ReadRow:
        """One row.

        Raises:
            RowError: something is wrong with it; names its line.
        """
        try:
            if isinstance(values, RowError):
                raise values
            row = parse_row(values, index, self.prompt_key, self.answer_key)
            with _named(self.prompt_key):
                if self.control is not None:
                    check_spelled(row, self.control)
                ids, opening, left_out = prompt_tokens(self.tokenizer, row)
                _check_size(ids, self.max_prompt_tokens)
            if self.vocab_size is not None:
                check_embedded(self.tokenizer, ids.tolist(), self.vocab_size)
        except RowError as error:
            raise error.at(line) from error
        ids.setflags(write=False)  # all samples of all its tasks share it
        return _ReadRow(line, row, ids, opening, left_out)


def _source_rows(source: str, split: str) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """The rows of a file or a data set; what is neither and no hub's name is a missing file."""
    path = data_file(source)
    if is_table(path):
        return table_rows(path)
    if path.is_dir() or (not path.exists() and _HUB_NAME.fullmatch(source)):
        return source_rows(source, split)
    return file_rows(source)


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors of the prompt name its column."""
    try:
        yield
    except RowError as error:
        field = error.field
        if field.startswith("prompt"):
            field = key + field.removeprefix("prompt")
        raise RowError(field, error.reason) from error


def _check_size(ids: Ints, most: int) -> None:
    if len(ids) > most:
        reason = f"{len(ids)} tokens, over the limit of {most} (--max-prompt-tokens)"
        raise RowError("prompt", reason)


def parse_row(
    values: Mapping[str, Any], index: int, prompt_key: str = "prompt", answer_key: str = "answer"
) -> PromptRow:
    """A row of the prompts.

    Raises:
        RowError: the prompt is missing or malformed or ends with the assistant's turn, the answer
            is neither text nor a number, or the inputs of the chat template are malformed.
    """
    prompt = values.get(prompt_key)
    if prompt is None:
        raise RowError(prompt_key, missing_column(prompt_key, values, "--prompt-key"))
    with _named(prompt_key):
        turns = _turns(prompt)
    if answer_key != "answer" and answer_key not in values:
        raise RowError(answer_key, missing_column(answer_key, values, "--answer-key"))
    extra = {key: value for key, value in values.items() if key != prompt_key}
    for key, value in extra.items():  # samples are written as JSON; Parquet holds dates and bytes
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise RowError(key, f"holds what JSON can't: {error}") from error
    answer = _answer(values.get(answer_key), answer_key)
    text = prompt if isinstance(prompt, str) else None
    return PromptRow(index, turns, answer, extra, text, read_template_inputs(values, RowError))


def _turns(prompt: Any) -> tuple[Message, ...]:
    turns = parse_prompt(prompt)
    if turns[-1]["role"] == "assistant":
        raise RowError("prompt", "ends with the assistant's turn: there is nothing to answer")
    check_turns("prompt", turns)
    return tuple(turns)


def _answer(value: Any, key: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(key, "must be text or a number")
    text = value if isinstance(value, str) else json.dumps(value)
    if not text.strip():
        raise RowError(key, "is empty")
    check_text(key, text)
    return text


class PromptOrder:
    """An endless order of tasks: every epoch has all rows, in a permutation of its own.

    Task `uid` is row `permutation(seed, uid // rows)[uid % rows]`, so the order needs no state
    but how far it has come. A task is *out* from `next` until it is `done` or given back; one
    that is given back comes again, before all new ones, the lowest uid first. So no row is
    lost, and none is trained on twice in an epoch, whatever fails in between.

    Args:
        prompts: the rows.
        seed: of the permutations.
    """

    def __init__(self, prompts: Prompts, seed: int) -> None:
        self.prompts = prompts
        self._seed = seed
        self._next = 0
        self._waiting: list[int] = []
        self._out: set[int] = set()
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)

    @property
    def epoch(self) -> int:
        """The epoch of the next new task, from 0."""
        return self._next // len(self.prompts)

    def next(self) -> Task:
        """The next task; it is out from now on."""
        if self._waiting:
            uid = heapq.heappop(self._waiting)
        else:
            uid, self._next = self._next, self._next + 1
        self._out.add(uid)
        return self.task(uid)

    def give_back(self, task: Task) -> None:
        """Take a task back: it comes again, before new ones."""
        assert task.uid in self._out, f"task {task.uid} is not out"
        self._out.remove(task.uid)
        heapq.heappush(self._waiting, task.uid)

    def done(self, task: Task) -> None:
        """A task is consumed: it never comes again."""
        assert task.uid in self._out, f"task {task.uid} is not out"
        self._out.remove(task.uid)

    def task(self, uid: int) -> Task:
        """The task of a uid: the same whenever it is asked for."""
        epoch, place = divmod(uid, len(self.prompts))
        if epoch != self._epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(len(self.prompts))
        index = int(self._permutation[place])
        return self.prompts.task(uid, index)

    def state_dict(self) -> dict[str, Any]:
        """The position in the order, as JSON can hold it."""
        return {
            "sha256": self.prompts.sha256,
            "rows": len(self.prompts),
            "seed": self._seed,
            "next": self._next,
            "waiting": sorted(self._waiting),
            "out": sorted(self._out),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, held: Collection[int] = ()) -> None:
        """Go on from a saved state.

        Args:
            state: of `state_dict`.
            held: uids that were out and still are, because their samples were saved too. All
                others that were out come again.

        Raises:
            DataError: the prompts or the seed are not those of the state.
        """
        mine = {"sha256": self.prompts.sha256, "rows": len(self.prompts), "seed": self._seed}
        for key, value in mine.items():
            if state[key] != value:
                raise DataError(
                    f"{self.prompts.source}: its {key} is {value}, the checkpoint's is "
                    f"{state[key]}: a run can only be resumed on the same prompts and seed"
                )
        out = set(state["out"])
        assert out.issuperset(held), "samples of a task that was not out"
        self._next = state["next"]
        self._out = set(held)
        self._waiting = sorted({*state["waiting"], *(out - self._out)})
