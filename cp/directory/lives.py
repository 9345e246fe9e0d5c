"""The keys of a machine that are about its life: when it starts, how it is restarted, stopped, watched and replaced."""

from collections.abc import Sequence
from typing import Final, cast, get_args

from attrs import evolve

from retinue.cp.directory.model import (
    BUDGET_MOST,
    DAY,
    GRACE_DEFAULT,
    GRACE_MAXIMUM,
    IDLE_DEFAULT,
    INSTANCES_MAXIMUM,
    PAUSE_FACTOR_MAXIMUM,
    PAUSE_FIRST_MINIMUM,
    PAUSE_MAXIMUM,
    SECOND,
    WATCHDOG_DEFAULT,
    WATCHDOG_MAXIMUM,
    Budget,
    MachineEntry,
    Pause,
    Replace,
    Restart,
    Start,
    System,
)
from retinue.cp.directory.names import read_word
from retinue.cp.directory.quantities import as_duration, read_fraction, read_number, read_span
from retinue.cp.directory.table import Mistakes, Table, quoted

#: In the order in which the reference page explains them.
LIFE_KEYS: Final = (
    *("restart", "pause", "restarts", "essential", "instances", "start", "idle", "watchdog", "grace", "replace"),
)
PAUSE_KEYS: Final = ("first", "factor", "longest", "jitter", "reset")
BUDGET_KEYS: Final = ("most", "within")

_BUDGET: Final = 'restarts = { most = 5, within = "60s" }'
_NEVER: Final = 'to give up instead: restart = "never"'
_NO_PAUSE: Final = 'for no pauses: pause = "0s"'


def read_life(table: Table, machine: MachineEntry) -> MachineEntry:
    """``machine`` with what its table says about its life; what is wrong there has its default."""
    start = read_word(table, "start", get_args(Start))
    idle = read_span(table, "idle", SECOND, DAY)
    if "idle" in table.values and (start == "up" or not table.given("start")):
        table.wrong("idle", "idle is for machines that start on demand", 'write start = "on-demand", or remove it')
    machine = evolve(
        machine,
        restart=cast(Restart, read_word(table, "restart", get_args(Restart)) or "always"),
        backoff=_pause(table),
        restarts=read_budget(table, 1, _NEVER),
        essential=table.value("essential", bool, "true or false") or False,
        instances=read_number(table, "instances", 1, INSTANCES_MAXIMUM) or 1,
        start=cast(Start, start or "up"),
        idle=IDLE_DEFAULT if idle is None else idle,
        watchdog=_watchdog(table),
        grace=_grace(table),
    )
    if "restarts" in table.values and machine.restart == "never":
        message = "restarts bounds how often the machine is started again, and restart says that it never is"
        table.wrong("restarts", message, "remove one of the two")
    replace = read_word(table, "replace", get_args(Replace))
    return machine if replace is None else evolve(machine, replace=cast(Replace, replace))


def read_budget(table: Table, least: int, fewer: str = "") -> Budget | None:
    """The budget ``restarts``; ``fewer`` is how to have less than ``least``. None if there is none or it is wrong."""
    budget = table.table("restarts", BUDGET_KEYS, f"a table, as in {_BUDGET}")
    if budget is None:
        return None
    for key in BUDGET_KEYS:
        if not budget.given(key):
            table.wrong("restarts", f"restarts has no {key}", f"write {_BUDGET}")
    most = read_number(budget, "most", least, BUDGET_MOST, fewer)
    within = read_span(budget, "within", SECOND, DAY)
    return None if most is None or within is None else Budget(most, within)


def _pause(table: Table) -> Pause:
    default = Pause()
    if not isinstance(table.values.get("pause"), dict):
        longest = _longest(table, "pause")
        return default if longest is None else Pause(longest=longest)
    pause = table.table("pause", PAUSE_KEYS, "a table of times")
    if pause is None:
        return default
    first = read_span(pause, "first", PAUSE_FIRST_MINIMUM, PAUSE_MAXIMUM, fewer=_NO_PAUSE)
    factor = read_fraction(pause, "factor", 1, PAUSE_FACTOR_MAXIMUM)
    longest = _longest(pause, "longest")
    jitter = read_fraction(pause, "jitter", 0, 1)
    reset = read_span(pause, "reset", SECOND, DAY)
    read = Pause(
        first=default.first if first is None else first,
        factor=default.factor if factor is None else factor,
        longest=default.longest if longest is None else longest,
        jitter=default.jitter if jitter is None else jitter,
        reset=default.reset if reset is None else reset,
    )
    if first is not None and first > read.longest and not (longest is None and "longest" in pause.values):
        message = f'first is "{pause.values["first"]}", and no pause is longer than "{as_duration(read.longest)}"'
        pause.wrong("first", message, "" if "longest" in pause.values else f'write longest = "{pause.values["first"]}"')
    return read


def _longest(table: Table, key: str) -> float | None:
    return read_span(table, key, 0.0, PAUSE_MAXIMUM, more=_NEVER)


def _watchdog(table: Table) -> float:
    if table.values.get("watchdog") == "off":
        return 0.0
    expected = 'a time such as "60s", or "off"'
    watchdog = read_span(table, "watchdog", SECOND, WATCHDOG_MAXIMUM, expected, fewer='for none: watchdog = "off"')
    return WATCHDOG_DEFAULT if watchdog is None else watchdog


def _grace(table: Table) -> float:
    grace = read_span(table, "grace", 0.0, GRACE_MAXIMUM)
    return GRACE_DEFAULT if grace is None else grace


def check_lives(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry]) -> None:
    """What the machines with the network, with disks and with the records of ``*LOG`` cannot do."""
    for machine in machines:
        if machine.instances > 1 and (problem := _no_instances(system, machine)):
            _wrong(mistakes, machine, "instances", f"{machine.name} {problem[0]}", problem[1])
        if machine.start == "on-demand" and (problem := _no_demand(system, machine)):
            _wrong(mistakes, machine, "start", f"{machine.name} {problem[0]}", problem[1])
        if machine.replace == "overlap" and machine.network:
            message = f"{machine.name} has the network, and while two overlap only one of them could listen"
            _wrong(mistakes, machine, "replace", message, 'write "stop-first", or remove this key')


def _wrong(mistakes: Mistakes, machine: MachineEntry, key: str, message: str, hint: str) -> None:
    path = ("machines", machine.name)
    mistakes.add((*path, key), path, message, hint)


def _no_instances(system: System, machine: MachineEntry) -> tuple[str, str] | None:
    """Why this machine cannot be several, and what would cure it."""
    remove = "remove instances"
    if machine.network:
        return "has the network, and only one of its instances could listen", remove
    if machine.name == system.syslog:
        return "is the syslog machine, and there is one log", remove
    disks = [disk.name for disk in machine.disks if not disk.temporary]
    if disks:
        cure = "make it temporary, or link to a disk of another machine"
        return f"has the disk {quoted(disks[0])}, which would be that of all of its instances", cure
    return None


def _no_demand(system: System, machine: MachineEntry) -> tuple[str, str] | None:
    """Why this machine cannot be started by the first path to it, and what would cure it."""
    remove = "remove start"
    if machine.network:
        return "has the network, and nobody could be heard outside before it runs", remove
    if machine.name == system.syslog:
        return "is the syslog machine, which every machine uses from its birth", remove
    return None
