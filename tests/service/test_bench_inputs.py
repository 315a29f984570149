"""The texts that benchmarks ask for: `make bench` itself is run by hand."""

from __future__ import annotations

from tests.bench.peers.texts import real_calls
from tests.bench.serving import as_request, real_items


def test_every_round_asks_for_real_conversations_of_its_own() -> None:
    first, second = real_calls(3, "a"), real_calls(3, "b")
    assert all(call.prompt[0]["content"].startswith("Question a.0: ") for call in first)
    assert [call.responses for call in first] == [call.responses for call in second]
    assert [call.prompt for call in first] != [call.prompt for call in second]


def test_a_conversation_crosses_the_wire_as_it_is() -> None:
    [item] = real_items(1)
    [asked] = as_request(item).items
    told = [
        {"role": each.role, "content": each.content} for each in asked.prompt.conversation.messages
    ]
    assert told == [dict(message) for message in item.prompt.messages]  # type: ignore[union-attr]
    assert [each.text for each in asked.responses] == list(item.responses)
