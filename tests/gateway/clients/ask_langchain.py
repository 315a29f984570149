"""LangChain's ChatOpenAI, which tells the headers of an answer alone, and its OpenAI for texts."""

from typing import Any

from cases import Case, ask_all, sampling
from langchain_core.messages import convert_to_messages
from langchain_openai import ChatOpenAI, OpenAI


def ask(case: Case) -> dict[str, Any]:
    asked: Any = {
        "base_url": case["url"],
        "api_key": case["key"],
        "model": case["model"],
        "max_retries": 0,
        **sampling(case),
        "default_headers": case.get("headers"),
    }
    if "prompt" in case:
        texts = OpenAI(**asked, **case.get("body", {})).generate([case["prompt"]])
        return {"texts": [each.text for each in texts.generations[0]]}
    chat = ChatOpenAI(**asked, extra_body=case.get("body"), include_response_headers=True)
    asking = chat.bind_tools(case["tools"]) if "tools" in case else chat
    if case.get("stream"):
        pieces = list(asking.stream(case["messages"]))
        return {"texts": ["".join(piece.text for piece in pieces)], "pieces": len(pieces)}
    if case.get("n", 1) > 1:
        reply = chat.generate([convert_to_messages(case["messages"])])
        return {"texts": [each.text for each in reply.generations[0]]}
    message = asking.invoke(case["messages"])
    headers = message.response_metadata["headers"]
    told = {
        "candidates": int(headers.get("x-guerdon-candidates", 1)),
        "ranked": headers.get("x-guerdon-ranked") == "true",
    }
    return {"texts": [message.text], "guerdon": told, "header": headers.get("x-guerdon-score")}


ask_all(ask)
