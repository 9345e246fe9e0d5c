"""The pager aims below the limit by what machines usually take between two looks."""

import pytest

from retinue.cp.pager.growth import MEANWHILE, MOST_AHEAD, SECONDS, SLACK, Growth
from retinue.cp.pager.policy import HIGH

MIB = 1 << 20
LIMIT = 100 * MIB


def test_who_does_not_grow_has_all_of_it() -> None:
    growth = Growth()
    assert growth.aim(LIMIT) == LIMIT
    for look in range(20):
        growth.note(float(look), -MIB)
    assert growth.aim(LIMIT) == LIMIT


@pytest.mark.parametrize("grown", [10, 15, 25])
def test_what_is_taken_each_time_fits_the_limit(grown: int) -> None:
    growth = Growth()
    for look in range(40):
        growth.note(look / 10, grown * MIB)
    aim = growth.aim(LIMIT)
    assert aim < LIMIT
    assert aim * HIGH + grown * MEANWHILE * MIB <= LIMIT * (1 + SLACK)
    assert (aim + MIB) * HIGH + grown * MEANWHILE * MIB > LIMIT * (1 + SLACK)


def test_one_that_grows_once_changes_nothing() -> None:
    growth = Growth()
    growth.note(0.0, 50 * MIB)
    for look in range(1, 10):
        growth.note(float(look), 0)
    assert growth.aim(LIMIT) == LIMIT


def test_much_is_left_whatever_machines_take_and_old_growth_is_forgotten() -> None:
    growth = Growth()
    for look in range(40):
        growth.note(look / 10, 1000 * MIB)
    assert growth.aim(LIMIT) == int(LIMIT * (1 - MOST_AHEAD))
    growth.note(4.0 + SECONDS, 0)
    assert growth.aim(LIMIT) == LIMIT
