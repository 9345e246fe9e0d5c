"""What is a record's body, to whoever asks."""

from typing import Any

import pytest

from retinue.cp.checking import checked_bodies, checked_body, is_body

GOOD: list[Any] = [1.5, 6, "x", "m", {}]


class Text(str):
    """What no decoder makes."""


def changed(place: int, value: object) -> list[Any]:
    return [*GOOD[:place], value, *GOOD[place + 1 :]]


BODIES = [
    pytest.param(GOOD, True, id="good"),
    pytest.param([*GOOD[:4], {"a": [1, {"b": None}]}], True, id="fields"),
    pytest.param(changed(1, 0), True, id="most-severe"),
    pytest.param(changed(1, 7), True, id="least-severe"),
    pytest.param(tuple(GOOD), False, id="tuple"),
    pytest.param(None, False, id="none"),
    pytest.param({}, False, id="map"),
    pytest.param(GOOD[:4], False, id="four"),
    pytest.param([*GOOD, {}], False, id="six"),
    pytest.param(changed(0, 1), False, id="time-integer"),
    pytest.param(changed(0, "1.5"), False, id="time-text"),
    pytest.param(changed(1, 8), False, id="severity-high"),
    pytest.param(changed(1, -1), False, id="severity-low"),
    pytest.param(changed(1, True), False, id="severity-truth"),
    pytest.param(changed(1, 6.0), False, id="severity-float"),
    pytest.param(changed(2, b"x"), False, id="logger-bytes"),
    pytest.param(changed(2, None), False, id="logger-none"),
    pytest.param(changed(3, 4), False, id="message-number"),
    pytest.param(changed(3, Text("m")), False, id="message-of-a-class"),
    pytest.param(changed(4, None), False, id="fields-none"),
    pytest.param(changed(4, []), False, id="fields-list"),
]


@pytest.mark.parametrize(("body", "good"), BODIES)
def test_all_agree_on_what_a_body_is(body: Any, good: bool) -> None:
    """The one that is asked for each record by itself, and the one that is asked for many."""
    frame = [1, 1, body]
    assert is_body(body) is good
    assert (checked_bodies([frame], 0) is not None) is good
    assert (checked_body(frame) is not None) is good


@pytest.mark.parametrize("when", [-1.0, 1e12, float("inf"), float("nan")])
def test_times_that_are_none_are_a_matter_of_those_who_read_machines(when: float) -> None:
    """What the control program itself has packed has the time that it has."""
    body = changed(0, when)
    assert is_body(body)
    assert checked_body([1, 1, body]) is None
    assert checked_bodies([[1, 1, body]], 0) is None
