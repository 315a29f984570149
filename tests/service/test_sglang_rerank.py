"""`/v1/rerank` as SGLang answers it, where the settings say so."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import Harness, start_server

QUERY, DOCUMENTS = "q", ["a b", "c", "d e f"]
ASKED: dict[str, Any] = {"query": QUERY, "documents": DOCUMENTS}
SGLANG = {"v1_rerank": "sglang"}


async def ranked(served: Harness) -> list[Any]:
    """The native API's scores in SGLang's shape (`RerankResponse`, in its protocol.py)."""
    items = [{"prompt": QUERY, "responses": DOCUMENTS}]
    reply = (await served.http.post("/v1/score", json={"model": "m", "items": items})).json()
    results = [
        {
            "score": pytest.approx(score["score"]),
            "document": document,
            "index": place,
            "meta_info": {"prompt_tokens": score["token_count"], "cached_tokens": 0},
            "order": score["score"],
        }
        for place, (document, score) in enumerate(
            zip(DOCUMENTS, reply["items"][0]["scores"], strict=True)
        )
    ]
    results.sort(key=lambda result: -result.pop("order"))
    return results


async def test_replies_are_a_list_of_raw_scores() -> None:
    async with start_server(formats=SGLANG) as served:
        expected = await ranked(served)
        for method in ("POST", "PUT"):
            reply = await served.http.request(method, "/v1/rerank", json=ASKED)
            assert reply.json() == expected
        few = {**ASKED, "model": "m", "top_n": 1, "return_documents": False}
        (best,) = (await served.http.post("/v1/rerank", json=few)).json()
        assert best == {key: expected[0][key] for key in ("score", "index", "meta_info")}
        for path in ("/rerank", "/v2/rerank"):
            assert "results" in (await served.http.post(path, json=ASKED)).json()


async def test_errors_are_sglangs() -> None:
    async with start_server(formats=SGLANG) as served:
        for body, says in ((b"{", "body"), (b'{"query":"q","documents":[]}', "documents")):
            reply = await served.http.post(
                "/v1/rerank", content=body, headers={"content-type": "application/json"}
            )
            error = reply.json()
            assert (reply.status_code, error.pop("message")[: len(says)]) == (400, says)
            assert error == {
                "object": "error",
                "type": "BadRequestError",
                "param": says,
                "code": 400,
            }
        reply = await served.http.post("/v1/rerank", json={**ASKED, "instruct": "x"})
        assert reply.json()["param"] == "instruct"


async def test_otherwise_the_path_is_coheres(served: Harness) -> None:
    assert "results" in (await served.http.post("/v1/rerank", json=ASKED)).json()
    assert (await served.http.put("/v1/rerank", json=ASKED)).status_code == 405
