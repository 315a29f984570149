"""A model that fails on one input fails that input, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.load import metrics, total
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint

from guerdon.client import Internal, Item, RewardClient, TokenIds

POISON = 250
"""A token whose embedding overflows float32 in the first layer norm: finite weights, no
finite score. No load-time probe holds it."""


def poisoned(folder: Path) -> Path:
    """A tiny GPT-2 with such a token."""
    tiny_checkpoint(folder, "gpt2")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["transformer.wte.weight"][POISON] = torch.finfo(torch.float32).max
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def item(*tail: int) -> Item:
    return Item(TokenIds([20, 30, 40]), [TokenIds([50, *tail])])


def test_nan_is_never_a_score(tmp_path: Path) -> None:
    with (
        running_server({"m": poisoned(tmp_path / "m")}, forked=False) as server,
        RewardClient(server.address) as client,
    ):
        good = client.score("m", [item(60)]).scores
        with pytest.raises(Internal):
            client.score("m", [item(POISON)])
        with ThreadPoolExecutor(16) as pool:  # good and bad share batches
            calls = [
                pool.submit(client.score, "m", [item(60) if i % 2 else item(POISON)])
                for i in range(64)
            ]
        for i, call in enumerate(calls):
            if i % 2 == 0:
                assert isinstance(call.exception(), Internal)
            elif call.exception() is None:  # a neighbour may fail with it, but never be wrong
                assert call.result().scores[0] == pytest.approx(good[0], abs=1e-5)
        assert client.score("m", [item(60)]).scores == good
        assert client.health()
        samples = metrics(server.url)
        assert total(samples, "guerdon_nonfinite_scores_total", 'model="m"') >= 33
        assert "nan" not in str(good).lower()
        log = server.log()
        assert "Traceback" not in log or "nonfinite" in log
