"""The watchdog on a virtual clock: hung is not busy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.cp.watchdog import BEATS, TRIFLE, Watchdog

LIMIT = 60.0
# CPU seconds of one beat: ten times what was measured.
BEAT_COST = 0.001


class Machine:
    """A machine and its watchdog, in steps of time."""

    def __init__(self, limit: float = LIMIT, *, host: bool = True) -> None:
        self.now = 1000.0
        self.cpu = 5.0
        self.turns = 0
        self.turned = self.now
        self.host = host
        self.dog = Watchdog(limit, lambda: self.now, lambda: self.cpu if self.host else None)
        self._beat_at = self.now + self.dog.period

    def live(
        self, seconds: float, *, turns: bool = True, load: float = 0.0, beats: bool = True, seen: bool = True
    ) -> str | None:
        """Let time pass; the first verdict there was."""
        end = self.now + seconds
        while self.now < end:
            step = max(self.now, min(end, self._beat_at, self.dog.next if seen else math.inf))
            self.cpu += load * (step - self.now)
            self.now = step
            if turns:
                self.turns += 1
                self.turned = self.now
            if self.now >= self._beat_at:
                self._beat_at = self.now + self.dog.period
                if beats:
                    self.cpu += BEAT_COST
                    if seen:
                        self.dog.beat(self.turns, self.cpu, self.now - self.turned)
            if seen and self.now >= self.dog.next and (verdict := self.dog.verdict()) is not None:
                return verdict
        return None


@pytest.fixture(params=[True, False], ids=["host", "machine"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """CPU time is told by the host, or by the machine where the host cannot say."""
    return Machine(host=request.param)


def test_idle_machine_is_not_hung(machine: Machine) -> None:
    """It answers its heart, for days."""
    assert machine.live(3 * 86400) is None


def test_busy_machine_is_not_hung(machine: Machine) -> None:
    """An hour of pure computation, in which the loop turns not once."""
    assert machine.live(3600, turns=False, load=1.0) is None


def test_machine_that_gets_little_cpu_is_not_hung(machine: Machine) -> None:
    """A thousandth of a CPU on a busy host is work, and far more than beats cost."""
    assert machine.live(3600, turns=False, load=0.001) is None


def test_busy_machine_without_beats_is_not_hung() -> None:
    """A native call may hold the interpreter: no beat leaves, but CPU time passes."""
    assert Machine().live(3600, turns=False, beats=False, load=1.0) is None


def test_stopped_machine_is_hung(machine: Machine) -> None:
    """No beats, no CPU time: SIGSTOP."""
    machine.live(600)
    stopped = machine.now
    verdict = machine.live(LIMIT * 2, turns=False, beats=False)
    assert verdict == (
        "for 60 s it gave no sign of life: it is stopped, or stands still as a whole, and it used no CPU time"
    )
    assert LIMIT - LIMIT / BEATS <= machine.now - stopped <= LIMIT * 1.25


def test_machine_in_a_blocking_call_is_hung(machine: Machine) -> None:
    """The heart beats, the loop does not turn. What the beats use themselves is no work."""
    machine.live(600)
    blocked = machine.now
    verdict = machine.live(LIMIT * 2, turns=False)
    assert verdict == "for 60 s its loop did not turn: it waits in a call that blocks, and it used no CPU time"
    assert LIMIT <= machine.now - blocked <= LIMIT * 1.25


def test_call_that_blocks_for_less_than_the_limit_is_nothing(machine: Machine) -> None:
    """Again and again."""
    for _ in range(100):
        assert machine.live(LIMIT * 0.9, turns=False) is None
        assert machine.live(0.1) is None
        machine.live(machine.dog.period)  # it is seen at the next beat


def test_beats_of_many_quiet_hours_are_no_work() -> None:
    """CPU time that an idle machine has used up in trifles does not count for it when it is stuck."""
    machine = Machine()
    for hours in range(5):
        assert machine.live(3600 * hours) is None
    assert machine.live(LIMIT * 1.25 + 1, turns=False) is not None


def test_machine_that_never_gave_a_beat_is_hung() -> None:
    """From its beginning on."""
    machine = Machine()
    assert machine.live(LIMIT * 1.25, turns=False, beats=False) is not None


def test_off() -> None:
    """It never bites, and never asks to be looked at."""
    machine = Machine(limit=0.0)
    assert machine.dog.next == math.inf
    machine.now += 1e9
    machine.dog.beat(1, 0.0, 1e6)
    assert machine.dog.verdict() is None


def test_control_program_that_was_away_blames_nobody() -> None:
    """It was stopped itself for an hour; beats may wait to be read. A hung machine is found afterwards."""
    machine = Machine()
    machine.live(100)
    machine.live(3600, seen=False)
    assert machine.dog.verdict() is None
    assert machine.live(600) is None
    machine.live(3600, turns=False, beats=False, seen=False)
    assert machine.dog.verdict() is None
    assert machine.live(LIMIT * 1.25, turns=False, beats=False) is not None


def test_lies_about_cpu_time_count_for_nothing_where_the_host_knows() -> None:
    """The host's word is above the machine's."""
    machine = Machine()
    for beat in range(1, BEATS * 2):
        machine.now += machine.dog.period
        machine.dog.beat(7, beat * 1000.0, 1e9)
        if machine.dog.verdict() is not None:
            return
    pytest.fail("it was believed")


@given(
    limit=st.sampled_from([1.0, 60.0, 3600.0]),
    host=st.booleans(),
    phases=st.lists(
        st.tuples(
            st.floats(0.001, 3.0),
            st.sampled_from(["idle", "busy", "native", "blocked", "stopped", "away"]),
        ),
        max_size=12,
    ),
)
def test_verdict_if_and_only_if_nothing_has_moved_for_the_limit(
    limit: float, host: bool, phases: list[tuple[float, str]]
) -> None:
    """Never within the limit of progress; at the latest a quarter after it, of looks that took place."""
    machine = Machine(limit, host=host)
    # Where only the machine knows what it has used, that is told by the difference of two beats.
    late = machine.dog.period * (1 if host else 2) + 1e-6
    still = 0.0  # seconds without progress that anybody has been told of: by a beat, or by the host
    watched = 0.0  # those of them in which somebody looked
    for share, kind in phases:
        if kind == "native" and not host:  # nobody would know
            kind = "busy"
        seconds = share * limit
        before = machine.now
        verdict = machine.live(
            seconds,
            turns=kind == "idle",
            load=1.0 if kind in ("busy", "native") else 0.0,
            beats=kind in ("idle", "busy", "blocked"),
            seen=kind != "away",
        )
        passed = machine.now - before
        if verdict is not None:
            # That it moves again is seen with the next beat.
            assert kind in ("blocked", "stopped") or passed <= late
            # Progress may have been made that much before it was seen.
            assert still + passed >= limit - late
            return
        if kind in ("blocked", "stopped"):
            still += passed
            watched += passed
            assert watched < limit * 1.5 + 1e-6
        elif kind == "away":
            still += passed
            watched = min(watched, limit - machine.dog.period)
        else:
            # Of what is done between two beats nobody hears, if the machine is stopped before the second one.
            still = still + passed if passed < late else 0.0
            watched = 0.0


def test_a_beat_costs_less_than_a_trifle() -> None:
    """The beats of one limit together stay below what counts as work."""
    assert BEATS * BEAT_COST < TRIFLE
