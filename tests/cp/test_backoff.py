"""Pauses before a restart."""

import random

from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.backoff import Backoff
from retinue.cp.directory import Pause
from retinue.cp.directory.model import PAUSE_FIRST, PAUSE_RESET

LONGEST = 10.0

pauses = st.builds(
    Pause,
    first=st.floats(0.001, 3600.0),
    factor=st.floats(1.0, 100.0),
    longest=st.floats(0.0, 3600.0),
    jitter=st.floats(0.0, 1.0),
    reset=st.floats(1.0, 86_400.0),
)


def test_first_restart_is_at_once() -> None:
    """Most deaths are single ones."""
    assert Backoff(Pause()).pause(0.0) == 0.0


def test_pauses_grow_by_the_factor_up_to_the_longest() -> None:
    """Without jitter they are exact."""
    backoff = Backoff(Pause(first=0.5, factor=3, longest=20.0, jitter=0.0))
    assert [backoff.pause(0.0) for _ in range(7)] == [0.0, 0.5, 1.5, 4.5, 13.5, 20.0, 20.0]


def test_jitter_only_shortens() -> None:
    """So that the longest pause is the longest."""
    backoff = Backoff(Pause(jitter=0.25), random.Random(1))
    backoff.pause(0.0)
    for number in range(40):
        longest = min(PAUSE_FIRST * 2**number, LONGEST)
        assert longest * 0.75 <= backoff.pause(1.0) <= longest


def test_longest_pause_alone_is_enough() -> None:
    """It bounds the first pause as well, and with 0 there is none."""
    short, none = Backoff(0.05, random.Random(1)), Backoff(0.0)
    found = [short.pause(0.0) for _ in range(20)]
    assert found[0] == 0.0
    assert all(0.04 <= pause <= 0.05 for pause in found[1:])
    assert {none.pause(0.0) for _ in range(20)} == {0.0}


@given(pauses, st.lists(st.floats(0.0, 100_000.0), max_size=50), st.randoms(use_true_random=False))
def test_every_pause_is_within_its_bounds(pause: Pause, lives: list[float], rng: random.Random) -> None:
    """Whatever the figures are, and however long the machine had been ready each time."""
    backoff = Backoff(pause, rng)
    deaths = 0
    for ready_for in lives:
        found = backoff.pause(ready_for)
        deaths = 1 if ready_for >= pause.reset else deaths + 1
        if deaths == 1:
            assert found == 0.0
        else:
            longest = min(pause.first * pause.factor ** (deaths - 2), pause.longest)
            assert longest * (1 - pause.jitter) * 0.999 <= found <= longest
        assert backoff.deaths == deaths


def test_number_of_deaths_has_no_limit() -> None:
    """A machine may die for years."""
    backoff = Backoff(Pause(factor=100.0))
    for _ in range(5_000):
        assert backoff.pause(0.0) <= LONGEST


def test_healthy_life_begins_anew() -> None:
    """A machine that was ready long enough is started at once again."""
    backoff = Backoff(Pause())
    for _ in range(10):
        backoff.pause(0.0)
    assert backoff.pause(PAUSE_RESET - 0.1) > 0.0
    assert backoff.pause(PAUSE_RESET) == 0.0
    assert backoff.pause(0.0) > 0.0


def test_machines_that_die_together_do_not_start_together() -> None:
    """Each has its own jitter."""
    found = set()
    for _ in range(20):
        backoff = Backoff(Pause())
        backoff.pause(0.0)
        found.add(backoff.pause(0.0))
    assert len(found) > 1


def test_successor_goes_on_where_its_predecessor_was() -> None:
    """With the number of deaths, and with other figures if the topology has changed."""
    exact = Pause(jitter=0.0)
    before = Backoff(exact)
    for _ in range(4):
        before.pause(0.0)
    after = Backoff(exact, deaths=before.deaths)
    assert after.pause(0.0) == before.pause(0.0)
    after.change(Pause(first=1.0, factor=1.0, jitter=0.0))
    assert after.pause(0.0) == 1.0
