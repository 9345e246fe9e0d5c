"""The gallery: each attempt to get out of a machine, in every kind of machine, at every rung this host can build.

An attempt that is not refused is a hole, whatever comes of it. To be sure that a refusal says something, each attempt
is also made where there is no seal, and must succeed there. A machine makes all of its attempts when the first test
asks for one of them; each test looks at one.
"""

import errno
import os
from typing import Any

import pytest
from tests.escapes.conftest import PrisonOf
from tests.escapes.inside import files, kernel, processes, sockets
from tests.escapes.inside.attempt import ATTEMPTS, ROOT, USER, Attempt
from tests.escapes.known import expect
from tests.escapes.prison import MACHINES
from tests.escapes.rungs import FILTERS, PLACES
from tests.escapes.unsealed import Unsealed

assert files
assert kernel
assert processes
assert sockets


def names_at(place: tuple[str, str]) -> list[str]:
    """The attempts that one kind of machine makes: none that it may; those at the filter, once for each filter."""
    return [
        name
        for name, each in ATTEMPTS.items()
        if place[1] not in each.allowed and (place in FILTERS or not each.filtered)
    ]


@pytest.mark.parametrize(("rung", "profile", "name"), [(*place, name) for place in PLACES for name in names_at(place)])
def test_attempt_is_refused(
    request: pytest.FixtureRequest, prison_of: PrisonOf, rung: str, profile: str, name: str
) -> None:
    prison = prison_of(rung)
    machine = MACHINES[profile]
    expect(request, name, prison, profile)
    judge(ATTEMPTS[name], prison.answer(profile, name, names_at((rung, profile))), prison.layers(machine))


def judge(attempt: Attempt, answer: dict[str, Any], layers: frozenset[str]) -> None:
    """Whether the answer is what the table says."""
    assert "raised" not in answer, answer["raised"]
    if attempt.needs and not attempt.needs.keys() & layers:
        assert "value" in answer, f"the page says that it is not refused: {'; '.join(attempt.needs.values())}"
        return
    assert "value" not in answer, f"it got out: {answer['value']}"
    number = answer["errno"]
    assert number in attempt.refusals, f"not by the seal: {errno.errorcode.get(number, number)} ({answer['text']})"


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_there_are_sixty_attempts_in_each_kind_of_machine(place: tuple[str, str]) -> None:
    assert len(names_at(place)) >= 60


WITHOUT_A_SEAL = [
    name for name, each in ATTEMPTS.items() if each.unsealed == USER or (each.unsealed, os.geteuid()) == (ROOT, 0)
]


@pytest.mark.parametrize("name", WITHOUT_A_SEAL)
def test_attempt_succeeds_without_a_seal(unsealed: Unsealed, name: str) -> None:
    """Otherwise the test above would prove nothing."""
    answer = unsealed.answer(name, WITHOUT_A_SEAL)
    assert "value" in answer, answer
