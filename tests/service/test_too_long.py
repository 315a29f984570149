"""A row that is longer than the model takes, by the commands: what to do about it is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.command import read_rows, write_jsonl
from tests.support.tiny import tiny_checkpoint

from .conftest import start_server
from .test_pairwise import RealLoader, command

LONG = {"prompt": "good answer " * 400, "responses": ["Water."]}
HOPELESS = {"prompt": "Why?", "responses": ["good answer " * 400]}
SHORT = {"prompt": "Why?", "responses": ["Water."]}
BOTH = (
    "(--truncation prompt-left drops the start of its prompt, --on-error skip leaves the row out)"
)
SKIP = "(--on-error skip leaves the row out)"


@pytest.mark.parametrize(
    ("row", "options", "hint"),
    [(LONG, [], BOTH), (HOPELESS, ["--truncation", "prompt-left"], SKIP)],
)
async def test_score_names_the_options_that_let_it_go_on(
    tmp_path: Path, row: dict[str, object], options: list[str], hint: str
) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    source = write_jsonl(tmp_path / "rows.jsonl", [row, SHORT])
    async with start_server(RealLoader(), models={"m": str(folder)}) as server:
        stopped = await command(server, "score", source, *options)
        assert stopped.returncode == 2
        message = stopped.stderr.decode()
        assert f"{source}, line 1: " in message
        assert "is too long" in message
        assert message.endswith(f"{hint}\n")
        skipped = await command(server, "score", source, *options, "--on-error", "skip")
        assert skipped.returncode == 4
        assert [row["scores"] is None for row in read_rows(skipped.stdout)] == [True, False]
