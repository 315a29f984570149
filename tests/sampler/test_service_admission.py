"""The books of what was accepted, with a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guerdon.sampler.admission import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    UNKNOWN_RETRY_SECONDS,
    Admission,
    Ticket,
)
from guerdon.serving.errors import InvalidRequest, Overloaded


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
