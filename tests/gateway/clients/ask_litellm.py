"""LiteLLM, by its provider for OpenAI-compatible endpoints."""

from typing import Any

import litellm
from cases import Case, ask_all, sampling

litellm.suppress_debug_info = True  # it goes to standard output


def ask(case: Case) -> dict[str, Any]:
    asked: Any = {
        "model": f"openai/{case['model']}",
        "api_base": case["url"],
        "api_key": case["key"],
        **sampling(case),
        "extra_headers": case.get("headers"),
        "max_retries": 0,
        **case.get("body", {}),
    }
    if "prompt" in case:
        text = litellm.text_completion(prompt=case["prompt"], **asked)
        return {"texts": [choice.text for choice in text.choices], "guerdon": text.guerdon}
    asked |= {"messages": case["messages"], "tools": case.get("tools")}
    if case.get("stream"):
        pieces = list(litellm.completion(**asked, stream=True))
        whole = litellm.stream_chunk_builder(pieces)
        texts = [choice.message.content for choice in whole.choices]
        return {"texts": texts, "pieces": len(pieces)}
    reply = litellm.completion(**asked)
    return {
        "texts": [choice.message.content for choice in reply.choices],
        "guerdon": reply.guerdon,
        "header": reply._hidden_params["additional_headers"].get("llm_provider-x-guerdon-score"),
    }


ask_all(ask)
