"""The books of what was accepted, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.sampler.admission import Admission, Ticket
from guerdon.serving.access.identity import Caller
from guerdon.serving.errors import InvalidRequest, Overloaded
from guerdon.serving.waiting import MAX_RETRY_SECONDS, MIN_RETRY_SECONDS, UNKNOWN_RETRY_SECONDS


def retry_after(admission: Admission, completions: int, now: float) -> float:
    with pytest.raises(Overloaded) as caught:
        admission.reserve(completions, now=now)
    return caught.value.retry_after


def test_what_never_fits_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest, match="limit is 4"):
        Admission(4).reserve(5, now=0)


def test_before_anything_ended_nothing_is_known() -> None:
    admission = Admission(4)
    admission.reserve(4, now=0)
    assert retry_after(admission, 1, 1) == UNKNOWN_RETRY_SECONDS


def test_the_time_to_come_back_is_that_of_the_room_that_is_missing() -> None:
    admission = Admission(100)
    ticket = admission.reserve(100, now=0.0)
    for k in range(40):  # ten in a second
        admission.finished(ticket, now=(k + 1) / 10)
    admission.reserve(40, now=4.0)
    assert retry_after(admission, 10, 4.0) == pytest.approx(1.0, rel=0.05)
    # Behind the one before, which will have taken ten.
    assert retry_after(admission, 20, 4.0) == pytest.approx(2.0, rel=0.05)
    assert retry_after(admission, 1, 4.0) == pytest.approx(4.0, rel=0.05)


def test_time_without_work_slows_nothing_down() -> None:
    admission = Admission(10)
    ticket = admission.reserve(10, now=0.0)
    for k in range(10):
        admission.finished(ticket, now=(k + 1) / 10)
    admission.reserve(10, now=10_000.0)
    assert retry_after(admission, 5, 10_000.0) == pytest.approx(0.5, rel=0.05)


def test_a_promise_is_bounded() -> None:
    admission = Admission(10)
    ticket = admission.reserve(10, now=0.0)
    admission.finished(ticket, now=1000.0)
    admission.reserve(1, now=1000.0)
    for _ in range(50):
        after = retry_after(admission, 10, 1000.0)
        assert MIN_RETRY_SECONDS <= after <= MAX_RETRY_SECONDS
    assert after == MAX_RETRY_SECONDS


def test_room_that_is_given_back_twice_is_given_back_once() -> None:
    admission = Admission(4)
    ticket = admission.reserve(3, now=0)
    admission.finished(ticket, now=1)
    admission.close(ticket, now=1)
    admission.close(ticket, now=1)
    assert admission.held == 0


@given(st.lists(st.tuples(st.sampled_from("rfc"), st.integers(1, 12)), max_size=60))
def test_the_books_balance(events: list[tuple[str, int]]) -> None:
    """Never more than the limit, never less than nothing, whatever happens."""
    admission = Admission(16)
    open_tickets: list[Ticket] = []
    now = 0.0
    for kind, number in events:
        now += number / 10
        if kind == "r":
            if admission.held + number <= 16:
                open_tickets.append(admission.reserve(number, now=now))
            else:
                after = retry_after(admission, number, now)
                assert MIN_RETRY_SECONDS <= after <= MAX_RETRY_SECONDS
        elif open_tickets:
            ticket = open_tickets[number % len(open_tickets)]
            if kind == "f" and ticket.completions:
                admission.finished(ticket, now=now)
            elif kind == "c":
                admission.close(ticket, now=now)
        assert admission.held == sum(ticket.completions for ticket in open_tickets)
        assert 0 <= admission.held <= 16


def caller(name: str, **limits: Any) -> Caller:
    return Caller(name=name, key=name, **limits)


def fill(admission: Admission, who: Caller, now: float, tokens_each: int = 1) -> list[Ticket]:
    """As many single completions as it is let in with."""
    found = []
    while True:
        try:
            found.append(admission.reserve(1, now=now, caller=who, tokens_each=tokens_each))
        except Overloaded:
            return found


def test_one_caller_alone_may_hold_all_of_it() -> None:
    assert len(fill(Admission(16), caller("a"), 0.0)) == 16


def test_callers_who_want_more_than_there_is_come_to_hold_their_shares() -> None:
    """The second comes when the first holds everything; one ends at a time, the oldest first."""
    admission = Admission(16)
    first, second = caller("first"), caller("second", share=3.0)
    held = [(first, ticket) for ticket in fill(admission, first, 0.0)]
    for k in range(1, 200):
        now = k / 10
        held += [(who, t) for who in (first, second) for t in fill(admission, who, now)]
        _, ended = held.pop(0)
        admission.finished(ended, now=now)
    owners = [who.name for who, _ in held]
    assert owners.count("first") == pytest.approx(4, abs=1)
    assert owners.count("second") == pytest.approx(12, abs=1)


def test_a_modest_caller_gets_what_it_asks_for_beside_a_greedy_one() -> None:
    """Two slots in turn, as vLLM draws; the modest one asks for less than its half."""

    def drawn_for_the_modest(*greedy: Caller) -> int:
        admission = Admission(16)
        modest, back, done = caller("modest"), 0.0, 0
        held: list[tuple[Caller, Ticket]] = []
        for k in range(4000):
            now = k / 10
            for who in greedy:
                held += [(who, ticket) for ticket in fill(admission, who, now)]
            if k % 4 == 0 or now >= back > 0:  # one in 0.4 s: half of its half
                try:
                    held.append((modest, admission.reserve(1, now=now, caller=modest)))
                    back = 0.0
                except Overloaded as error:
                    back = now + error.retry_after
            if held:
                who, ended = held.pop(0)
                admission.finished(ended, now=now)
                done += who is modest
        return done

    alone = drawn_for_the_modest()
    assert alone == 1000
    assert drawn_for_the_modest(caller("greedy")) >= 0.8 * alone
    assert drawn_for_the_modest(caller("a"), caller("b")) >= 0.8 * alone


def test_the_tokens_of_a_caller_are_bounded_by_its_own_limit() -> None:
    admission, limited = Admission(100), caller("limited", max_tokens=100)
    with pytest.raises(InvalidRequest, match=r"max_tokens of 'limited' is 100"):
        admission.reserve(4, now=0.0, caller=limited, tokens_each=30)
    held = fill(admission, limited, 0.0, tokens_each=30)
    assert len(held) == 3
    admission.finished(held[0], now=1.0)
    assert len(fill(admission, limited, 1.0, tokens_each=30)) == 1
    assert len(fill(admission, caller("other"), 1.0, tokens_each=30)) > 40


def test_callers_that_have_gone_are_forgotten() -> None:
    admission = Admission(4)
    for k in range(2000):
        admission.close(admission.reserve(1, now=k, caller=caller(f"c{k}")), now=k)
    assert len(admission._accounts) < 300
