"""Pauses before a restart."""

import random

from retinue.cp.backoff import FIRST, HEALTHY, Backoff

LONGEST = 10.0


def test_first_restart_is_at_once() -> None:
    """Most deaths are single ones."""
    assert Backoff(LONGEST).pause(0.0) == 0.0


def test_pauses_double_up_to_the_longest() -> None:
    """With jitter of at most one half, downwards."""
    backoff = Backoff(LONGEST, random.Random(1))
    backoff.pause(0.0)
    for number in range(40):
        longest = min(FIRST * 2**number, LONGEST)
        assert longest / 2 <= backoff.pause(1.0) <= longest


def test_longest_pause_is_the_topologys() -> None:
    """Below the first pause as well, and with 0 there is none."""
    short, none = Backoff(0.05, random.Random(1)), Backoff(0.0)
    pauses = [short.pause(0.0) for _ in range(20)]
    assert pauses[0] == 0.0
    assert all(0.025 <= pause <= 0.05 for pause in pauses[1:])
    assert {none.pause(0.0) for _ in range(20)} == {0.0}


def test_number_of_deaths_has_no_limit() -> None:
    """A machine may die for years."""
    backoff = Backoff(LONGEST)
    for _ in range(5_000):
        assert backoff.pause(0.0) <= LONGEST


def test_healthy_life_begins_anew() -> None:
    """A machine that was ready long enough is started at once again."""
    backoff = Backoff(LONGEST)
    for _ in range(10):
        backoff.pause(0.0)
    assert backoff.pause(HEALTHY - 0.1) > 0.0
    assert backoff.pause(HEALTHY) == 0.0
    assert backoff.pause(0.0) > 0.0


def test_machines_that_die_together_do_not_start_together() -> None:
    """Each has its own jitter."""
    pauses = set()
    for _ in range(20):
        backoff = Backoff(LONGEST)
        backoff.pause(0.0)
        pauses.add(backoff.pause(0.0))
    assert len(pauses) > 1
