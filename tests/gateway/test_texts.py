"""Ranked text completions are those of the sampler's own API, whose prompts begin as vLLM's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.formula_engine import VOCABULARY
from tests.support.sampler_service import start_sampler
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from guerdon.client.testing import FakeRewardServer
from guerdon.sampler.tokenizer import CheckpointTokenizer

from .support import gateway_before

TEXT = "w5 w7 w11"
BOS = 1


def spaced_words() -> Any:
    """A tokenizer as Llama 2's: a BOS before each text, and words with the space before them."""
    words = {"<unk>": 0, "<s>": BOS, "</s>": 2} | {f"▁w{i}": i for i in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("special", [None, True, False])
async def test_a_text_is_completed_as_the_samplers_own_api_does(
    tmp_path: Path, special: bool | None
) -> None:
    words = spaced_words()
    words.save_pretrained(tmp_path)
    # What vLLM does with a text: `add_special_tokens` is the tokenizer's own, on by default.
    prompt = words(TEXT, add_special_tokens=special is not False)["input_ids"]
    assert (prompt[0] == BOS) == (special is not False)
    asked = {"prompt": TEXT, "n": 4, "seed": 3, "max_tokens": 16}
    if special is not None:
        asked["add_special_tokens"] = special
    async with (
        start_sampler(CheckpointTokenizer(tmp_path)) as sampler,
        FakeRewardServer(models=("rm",)) as rewards,
        gateway_before(sampler, f"{rewards.target}/rm") as gateway,
    ):

        async def completed(http: Any, **more: Any) -> dict[str, Any]:
            reply = await http.post("/v1/completions", json={**asked, **more})
            assert reply.status_code == 200, reply.text
            found: dict[str, Any] = reply.json()
            assert found["usage"]["prompt_tokens"] == len(prompt)
            return found

        plain = await completed(sampler.http, return_token_ids=True)
        assert plain["choices"][0]["prompt_token_ids"] == prompt
        texts = [choice["text"] for choice in plain["choices"]]
        assert all(text.startswith(" w") for text in texts)
        ranked = await completed(gateway.http, best_of=4)
        assert sorted(choice["text"] for choice in ranked["choices"]) == sorted(texts)
        scored = [
            response.text
            for call in rewards.calls
            if call.method == "Score"
            for item in call.request.items
            for response in item.responses
        ]
        assert sorted(scored) == sorted(texts)
        # What is drawn piece by piece has the space too, and none more.
        grown = {"strategy": "rejection", "chunk": 2, "keep": 1.0}
        for choice in (await completed(gateway.http, best_of=4, guerdon=grown))["choices"]:
            assert choice["text"].startswith(" w")
            assert "  " not in choice["text"]
            ended = choice["finish_reason"] == "stop"
            assert len(choice["text"].split()) == choice["guerdon"]["tokens"] - ended
