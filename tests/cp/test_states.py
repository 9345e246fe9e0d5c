"""The states of a machine as a table."""

import pytest

from retinue.cp.states import FINAL, TABLE, Happening, State

S, H = State, Happening


def reachable(start: State) -> set[State]:
    reached = {start}
    while True:
        more = {following for (state, _), following in TABLE.items() if state in reached} - reached
        if not more:
            return reached
        reached |= more


def test_every_state_can_be_reached() -> None:
    """From the topology on."""
    assert reachable(S.DEFINED) == set(State)


def test_every_happening_means_something() -> None:
    """None is without a row."""
    assert {happening for _, happening in TABLE} == set(Happening)


def test_no_state_is_the_end() -> None:
    """From everywhere there is a way on, and a way to STOPPED."""
    assert {state for state, _ in TABLE} == set(State)
    for state in State:
        assert S.STOPPED in reachable(state)


def test_only_a_start_leads_out_of_a_final_state_to_life() -> None:
    """A machine in one of them will not become ready by itself."""
    for state in FINAL:
        assert {happening for before, happening in TABLE if before is state} <= {H.START, H.STOP, H.REST}
    for state in State:
        assert S.READY in reachable(state)


def test_stop_is_possible_in_every_state_but_the_stopping_ones() -> None:
    """Wherever an operator finds a machine."""
    assert {state for state in State if (state, H.STOP) not in TABLE} == {S.STOPPING, S.STOPPED}


@pytest.mark.parametrize("state", [S.STARTING, S.READY, S.STOPPING])
def test_state_with_a_process_survives_any_end_of_it(state: State) -> None:
    """A process may end at any moment, in either way."""
    assert TABLE[state, H.FINISH] is S.STOPPED
    assert TABLE[state, H.DIE] is (S.STOPPED if state is S.STOPPING else S.ABEND)


def test_state_without_a_process_has_no_end_of_it() -> None:
    """Nor can it say that it is ready."""
    for state in set(State) - {S.STARTING, S.READY, S.STOPPING}:
        assert not {(state, H.FINISH), (state, H.DIE), (state, H.READY)} & TABLE.keys()
