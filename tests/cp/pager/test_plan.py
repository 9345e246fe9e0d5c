"""The pager's policy: what is taken from whom, on figures alone."""

from collections.abc import Sequence
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.pager.overcommit import HOLD, LOOKS, SHRINK, VAIN, Overcommit, Step, victim
from retinue.cp.pager.policy import HIGH, LOW, QUIET, Figures, Take, plan

MIB = 1 << 20


def machine(name: str, resident: int, idle: float = 0.0, **others: Any) -> Figures:
    """``resident`` in MiB."""
    return attrs.evolve(Figures(name, 1, resident * MIB, idle), **others)


def told(takes: Sequence[Take]) -> list[tuple[str, int, str]]:
    """In MiB, rounded."""
    return [(take.name, round(take.most / MIB), take.why) for take in takes]


# -- one rule after another --------------------------------------------------------------------------------------------


def test_nothing_is_taken_while_there_is_room() -> None:
    machines = [machine("A", 40, 100), machine("B", 40)]
    assert plan(machines, 100 * MIB) == []
    assert plan(machines, None, pressure=1.0) == []


def test_pages_are_taken_before_storage_is_used_up() -> None:
    """From 97 % of it on, down to 94 %."""
    assert told(plan([machine("A", 98, 100)], 100 * MIB)) == [("A", 4, "limit")]


def test_who_is_idle_for_longest_loses_first() -> None:
    machines = [machine("NEW", 40, 10), machine("OLD", 30, 1000), machine("BUSY", 50)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 26, "limit")]
    machines = [machine("NEW", 60, 10), machine("OLD", 30, 1000), machine("BUSY", 60)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 30, "limit"), ("NEW", 26, "limit")]


def test_who_runs_loses_when_nobody_else_has_anything() -> None:
    machines = [machine("BUSY", 90), machine("OLD", 20, 1000)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 16, "limit")]
    machines = [machine("BUSY", 110), machine("OLD", 20, 1000)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 20, "limit"), ("BUSY", 16, "limit")]


def test_who_runs_loses_first_what_it_has_not_used_lately() -> None:
    machines = [machine("BIG", 70, working=68 * MIB), machine("WIDE", 50, working=10 * MIB)]
    assert told(plan(machines, 100 * MIB)) == [("BIG", 1, "limit"), ("WIDE", 25, "limit")]


def test_reserve_is_taken_last_even_from_who_is_idle() -> None:
    machines = [machine("OLD", 50, 1000, reserve=40 * MIB), machine("BUSY", 70)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 10, "limit"), ("BUSY", 16, "limit")]
    machines = [machine("OLD", 60, 1000, reserve=60 * MIB), machine("BUSY", 60, reserve=60 * MIB)]
    assert told(plan(machines, 100 * MIB)) == [("OLD", 26, "limit")]


def test_what_could_not_be_taken_is_not_tried_again() -> None:
    machines = [machine("OLD", 60, 1000, floor=60 * MIB), machine("BUSY", 60)]
    assert told(plan(machines, 100 * MIB)) == [("BUSY", 26, "limit")]


def test_idle_machine_is_paged_out_whole_once() -> None:
    idle = machine("A", 40, 30, idle_page_out=30.0)
    assert told(plan([idle], None)) == [("A", 40, "idle")]
    assert plan([attrs.evolve(idle, idle=29.9)], None) == []
    assert plan([attrs.evolve(idle, whole=True)], None) == []
    assert told(plan([attrs.evolve(idle, reserve=8 * MIB)], None)) == [("A", 32, "idle")]
    assert plan([machine("A", 40, 1e6)], None) == []


def test_under_pressure_a_part_is_taken_from_who_does_not_run() -> None:
    machines = [machine("OLD", 40, 100, reserve=39 * MIB), machine("NEW", 20, 10), machine("BUSY", 20)]
    assert told(plan(machines, 200 * MIB, 0.05)) == []
    assert told(plan(machines, 200 * MIB, 0.2)) == [("OLD", 1, "pressure"), ("NEW", 2, "pressure")]


# -- always ------------------------------------------------------------------------------------------------------------

figures = st.builds(
    Figures,
    name=st.text("ABCDEFGH", min_size=1, max_size=3),
    generation=st.integers(1, 3),
    resident=st.integers(0, 200 * MIB),
    idle=st.one_of(st.just(0.0), st.floats(0, 1000)),
    reserve=st.one_of(st.just(0), st.integers(0, 100 * MIB)),
    priority=st.integers(1, 1000),
    idle_page_out=st.sampled_from([0.0, 1.0, 30.0]),
    working=st.integers(0, 100 * MIB),
    floor=st.one_of(st.just(0), st.integers(0, 100 * MIB)),
    whole=st.booleans(),
)
many = st.lists(figures, max_size=8, unique_by=lambda each: (each.name, each.generation))
limits = st.integers(32 * MIB, 600 * MIB)
pressures = st.one_of(st.none(), st.floats(0, 1))


@given(many, limits, pressures)
def test_machines_fit_again_if_they_can(machines: list[Figures], limit: int, pressure: float | None) -> None:
    """Afterwards they have no more than the low mark, or nothing can be taken from anybody."""
    taken = {(take.name, take.generation): take.most for take in plan(machines, limit, pressure)}
    total = sum(each.resident for each in machines)
    left = total - sum(taken.values())
    rest = sum(each.above(0) - taken.get((each.name, each.generation), 0) for each in machines)
    assert left <= limit * HIGH or rest == 0
    if total > limit * HIGH:
        assert left <= int(limit * LOW) or rest == 0


@given(many, limits, pressures)
def test_nobody_loses_more_than_can_be_taken(machines: list[Figures], limit: int, pressure: float | None) -> None:
    takes = plan(machines, limit, pressure)
    assert len({(take.name, take.generation) for take in takes}) == len(takes)
    for take in takes:
        (of,) = [each for each in machines if (each.name, each.generation) == (take.name, take.generation)]
        assert 0 < take.most <= of.above(0)


@given(many, limits, pressures)
def test_reserve_is_kept_while_others_have_more(machines: list[Figures], limit: int, pressure: float | None) -> None:
    taken = {(take.name, take.generation): take.most for take in plan(machines, limit, pressure)}
    after = {each: each.resident - taken.get((each.name, each.generation), 0) for each in machines}
    robbed = [each for each in machines if after[each] < min(each.reserve, each.resident)]
    if robbed:
        assert all(after[each] <= max(each.reserve, each.floor) for each in machines)


@given(many, limits)
def test_who_runs_loses_only_when_the_others_are_at_their_reserve(machines: list[Figures], limit: int) -> None:
    machines = [attrs.evolve(each, idle_page_out=0.0) for each in machines]
    taken = {(take.name, take.generation): take.most for take in plan(machines, limit)}
    if any(each.runs and (each.name, each.generation) in taken for each in machines):
        for each in machines:
            if each.idle >= QUIET:
                left = each.resident - taken.get((each.name, each.generation), 0)
                assert left <= max(each.reserve, each.floor)


# -- when nothing can be taken any more --------------------------------------------------------------------------------


def test_steps_come_one_after_another_with_time_between() -> None:
    overcommit = Overcommit()
    limit, over = 100 * MIB, 120 * MIB
    assert overcommit.look(0.0, 90 * MIB, limit, more=False) is None
    assert overcommit.look(1.0, over, limit, more=True) is None
    assert overcommit.look(2.0, over, limit, more=False) is Step.SHRINK
    assert not overcommit.holds
    assert overcommit.look(2.0 + SHRINK / 2, over, limit, more=False) is None
    assert overcommit.look(2.0 + SHRINK, over, limit, more=False) is Step.HOLD
    assert overcommit.holds
    ended = 2.0 + SHRINK + HOLD
    assert overcommit.look(ended - 0.1, over, limit, more=False) is None
    assert overcommit.look(ended, over, limit, more=False) is Step.END
    assert overcommit.look(ended + HOLD / 2, over, limit, more=False) is None
    assert overcommit.look(ended + HOLD, over, limit, more=False) is Step.END
    assert overcommit.look(ended + HOLD + 1, 99 * MIB, limit, more=False) is None
    assert overcommit.holds
    assert overcommit.look(ended + HOLD + 2, 90 * MIB, limit, more=False) is Step.FITS
    assert not overcommit.holds


def test_nobody_is_ended_while_paging_helps() -> None:
    """Also for long: now and then all have room after a look."""
    overcommit = Overcommit()
    totals = [(99 if now % (VAIN - 1) == 0 else 120) * MIB for now in range(300)]
    steps = {overcommit.look(float(now), total, 100 * MIB, more=now % 3 > 0) for now, total in enumerate(totals)}
    assert Step.END not in steps


def test_to_take_a_little_all_the_time_is_as_good_as_nothing() -> None:
    """Machines have back at once what was taken: after half a minute the ordinary steps begin, with their pauses."""
    overcommit = Overcommit()
    steps: dict[Step, float] = {}
    for now in range(60):
        if (step := overcommit.look(float(now), 120 * MIB, 100 * MIB, more=True)) is not None:
            steps.setdefault(step, float(now))
    assert steps == {Step.SHRINK: VAIN, Step.HOLD: VAIN + SHRINK, Step.END: VAIN + SHRINK + HOLD}
    assert overcommit.look(60.0, 90 * MIB, 100 * MIB, more=True) is Step.FITS
    assert overcommit.look(61.0, 120 * MIB, 100 * MIB, more=True) is None


def test_who_comes_nearer_to_the_limit_has_time() -> None:
    """The limit was halved, and the device is slow: nobody is asked for anything before it stops getting better."""
    overcommit, limit = Overcommit(), 4000 * MIB
    for now in range(600):
        assert overcommit.look(float(now), (8000 - now * 3) * MIB, limit, more=True) is None
    told = [overcommit.look(600.0 + now, 6200 * MIB, limit, more=True) for now in range(60)]
    assert told.count(Step.SHRINK) == 1
    assert told.index(Step.SHRINK) > VAIN / 2


def test_time_without_looks_does_not_count() -> None:
    """Each look takes long where there is much to do."""
    overcommit = Overcommit()
    steps = [overcommit.look(now * VAIN, 120 * MIB, 100 * MIB, more=True) for now in range(LOOKS + 1)]
    assert steps == [None] * LOOKS + [Step.SHRINK]


def test_where_nobody_is_started_pages_are_taken_until_somebody_may_be() -> None:
    """Also from less on than otherwise."""
    machines = [machine("A", 96, 100)]
    assert plan(machines, 100 * MIB) == []
    assert told(plan(machines, 100 * MIB, high=LOW)) == [("A", 2, "limit")]


looks = st.lists(st.tuples(st.floats(0.1, 5.0), st.integers(50, 150), st.booleans()), max_size=60)


@given(looks)
def test_nobody_is_ended_who_was_not_warned(looks: list[tuple[float, int, bool]]) -> None:
    """Before every end the machines were asked, starts were held, and both had their time."""
    overcommit, now = Overcommit(), 0.0
    asked = held = over = None
    for seconds, total, more in looks:
        now += seconds
        over = None if total <= 100 else now if over is None else over
        step = overcommit.look(now, total * MIB, 100 * MIB, more=more)
        if step is Step.FITS:
            asked = held = None
        elif step is Step.SHRINK:
            asked = now
        elif step is Step.HOLD:
            assert asked is not None
            assert now - asked >= SHRINK
            held = now
        elif step is Step.END:
            assert total > 100
            assert not more or (over is not None and now - over >= VAIN)
            assert held is not None
            assert now - held >= HOLD


@given(many, st.dictionaries(st.text("ABCDEFGH", min_size=1, max_size=3), st.integers(0, MIB)))
def test_nobody_of_higher_priority_is_ended(machines: list[Figures], grown: dict[str, int]) -> None:
    having = [each for each in machines if each.resident]
    found = victim(machines, grown)
    assert (found is None) == (not having)
    if found is not None:
        assert found.priority == min(each.priority for each in having)
        assert (found.name, found.generation) in {(each.name, each.generation) for each in having}


def test_of_equals_the_one_that_wanted_it_is_ended_and_never_the_keeper() -> None:
    machines = [machine("LOG", 90), machine("SHOP", 40), machine("WEB", 10), machine("LEAST", 5, priority=200)]
    found = victim(machines, {"WEB": MIB, "LEAST": 2 * MIB}, keeper="LOG")
    assert found is not None
    assert (found.name, found.wanted_by) == ("SHOP", "LEAST")
    found = victim(machines, {"WEB": 3 * MIB}, keeper="LOG")
    assert found is not None
    assert (found.name, found.wanted_by) == ("WEB", "WEB")
    found = victim([attrs.evolve(machines[0], priority=1), *machines[1:]], {}, keeper="LOG")
    assert found is not None
    assert found.name == "LOG"
