"""OpenAI's own client; streams are read by its helper that puts the chunks together."""

from typing import Any

import openai
from cases import Case, ask_all, sampling


def ask(case: Case) -> dict[str, Any]:
    client = openai.OpenAI(base_url=case["url"], api_key=case["key"], max_retries=0)
    asked: Any = {
        "model": case["model"],
        **sampling(case),
        "extra_body": case.get("body"),
        "extra_headers": case.get("headers"),
    }
    if "prompt" in case:
        text = client.completions.create(prompt=case["prompt"], **asked)
        return {"texts": [choice.text for choice in text.choices], "guerdon": text.guerdon}
    asked |= {"messages": case["messages"], "tools": case.get("tools", openai.omit)}
    if case.get("stream"):
        with client.chat.completions.stream(**asked) as stream:
            events = list(stream)
        reply = stream.get_final_completion()
        return {
            "texts": [choice.message.content for choice in reply.choices],
            "pieces": sum(event.type == "content.delta" for event in events),
        }
    raw = client.chat.completions.with_raw_response.create(**asked)
    reply: Any = raw.parse()
    return {
        "texts": [choice.message.content for choice in reply.choices],
        "guerdon": reply.guerdon,
        "header": raw.headers.get("x-guerdon-score"),
        "score": getattr(reply.choices[0], "guerdon", {}).get("score"),
    }


ask_all(ask)
