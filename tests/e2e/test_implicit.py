"""From `guerdon train dpo` to rewards over a socket: they are what the trainer measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fine_tune.support import inputs_of, run, settings_of
from tests.support.command import read_rows
from tests.support.load import metrics
from tests.support.server import running_server
from tests.support.tiny import tiny_checkpoint
from tests.trainer.toy import write_toy
from transformers import AutoModelForCausalLM

from guerdon.client import Item, RewardClient, TokenIds
from guerdon.models import Manifest, weights_hash
from guerdon.trainer.fine_tune.measure import pair_likelihoods

BETA = 0.25


def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.slow
def test_a_dpo_run_is_served_as_the_reward_that_it_implies(tmp_path: Path) -> None:
    policy = tiny_checkpoint(tmp_path / "policy", "llama", causal_lm=True)
    toy = write_toy(tmp_path / "train.jsonl", 32, 1), write_toy(tmp_path / "eval.jsonl", 12, 2)
    settings = settings_of(
        "dpo", policy, toy, tmp_path / "run", save_dtype="float32", beta=BETA, epochs=2.0
    )
    summary, _ = run(settings)
    folder = tmp_path / "run" / "reward"
    assert [path.name for path in folder.iterdir()] == ["guerdon.json"]
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert (manifest.policy, manifest.reference) == ("../final", "../../policy")
    assert manifest.reference_hash == weights_hash(policy)
    (tmp_path / "run").rename(tmp_path / "moved")  # beside the reference: both are still found
    folder = tmp_path / "moved" / "reward"

    inputs = inputs_of(settings)
    now, first = (
        pair_likelihoods(model(path), inputs.eval.rows, "float32")
        for path in (tmp_path / "moved" / "final", policy)
    )
    wanted = np.stack(now.rewards(first, BETA), axis=1)
    assert np.abs(wanted).max() > 0.1, "a policy that learned nothing would hide faults"
    assert manifest.mean == pytest.approx(wanted.mean(), abs=1e-4)
    assert manifest.std == pytest.approx(wanted.std(), abs=1e-4)
    margin = summary["after"]["margin"]
    assert float((wanted[:, 0] - wanted[:, 1]).mean()) == pytest.approx(margin, abs=1e-4)

    rows = read_rows(toy[1])
    texts = [[row[key][0]["content"] for key in ("chosen", "rejected")] for row in rows]
    items = [Item(row["prompt"], answers) for row, answers in zip(rows, texts, strict=True)]
    with (
        running_server({"mine": folder}, forked=False, dtype="float32") as server,
        RewardClient(server.address) as client,
    ):
        info = client.get_model("mine")
        assert (info.kind, info.compute_mode) == ("implicit", "packed")
        assert info.architecture == "LlamaForCausalLM"
        found = client.score("mine", items)
        np.testing.assert_allclose(found.scores, wanted, atol=1e-4, rtol=0)
        assert found.items[0].scores[1].reused_tokens > 0, "the prompt is computed once"
        scaled = client.score("mine", items, normalize=True)
        np.testing.assert_allclose(
            scaled.scores, (wanted - manifest.mean) / manifest.std, atol=1e-3, rtol=0
        )
        for place, answers in enumerate(texts):
            best = int(np.argmax(wanted[place]))
            ranking = client.rank("mine", rows[place]["prompt"], answers)
            assert ranking.ranking[0].index == best
        for result in client.score_stream("mine", items):
            np.testing.assert_allclose(result.values, wanted[result.index], atol=1e-4, rtol=0)
        ids = [
            Item(TokenIds(pair.prompt), [TokenIds(pair.chosen), TokenIds(pair.rejected)])
            for pair in inputs.eval.rows
        ]
        np.testing.assert_allclose(client.score("mine", ids).scores, wanted, atol=1e-4, rtol=0)
        (name,) = (key for key in metrics(server.url) if key.startswith("guerdon_model_info"))
        assert 'kind="implicit"' in name
