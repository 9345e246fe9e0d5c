"""What becomes of a machine's records while nobody can store them: the tables ``log`` of a topology file."""

import re
from collections.abc import Sequence
from typing import Final, cast, get_args

from attrs import evolve

from retinue.cp.directory.model import (
    LOG_BUFFER_MAXIMUM,
    LOG_BUFFER_MINIMUM,
    LOG_RATE_MAXIMUM,
    LOG_SPILL_MAXIMUM,
    LOG_SPILL_MINIMUM,
    LogPolicy,
    LogRate,
    LogWay,
    MachineEntry,
    System,
)
from retinue.cp.directory.names import read_word
from retinue.cp.directory.quantities import as_size, read_size
from retinue.cp.directory.table import Mistakes, Table, shown

#: In the order in which the reference page explains them.
LOG_KEYS: Final = ("policy", "buffer", "spill", "rate")

_EXPECTED: Final = 'a table, as in log = { policy = "spill", buffer = "1M" }'
_RATE: Final = re.compile(r"([1-9][0-9]{0,14})/(s|m|h)", re.ASCII)
_ALMOST_RATE: Final = re.compile(r"\s*([1-9][0-9]{0,14})\s*(?:/|per)?\s*(s|m|h)?[a-z]*\s*", re.ASCII | re.IGNORECASE)
_RATE_EXPECTED: Final = 'a number of records in a time such as "1000/s"'
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


def read_log(owner: Table, default: LogPolicy) -> LogPolicy:
    """What the table ``log`` of a machine, or of the system, says; what it does not say is as ``default``."""
    table = owner.table("log", LOG_KEYS, _EXPECTED)
    if table is None:
        return default
    policy = read_word(table, "policy", get_args(LogWay))
    buffer = _size(table, "buffer", LOG_BUFFER_MINIMUM, LOG_BUFFER_MAXIMUM)
    spill = _size(table, "spill", LOG_SPILL_MINIMUM, LOG_SPILL_MAXIMUM)
    return LogPolicy(
        policy=cast(LogWay, policy or default.policy),
        buffer=default.buffer if buffer is None else buffer,
        spill=default.spill if spill is None else spill,
        rate=_rate(table, default.rate),
    )


def _size(table: Table, key: str, least: int, most: int) -> int | None:
    size = read_size(table, key)
    if size is None or least <= size <= most:
        return size
    value = f'{key} is "{table.values[key]}"'
    if size < least:
        table.wrong(key, f'{value}, and the least is "{as_size(least)}"')
    else:
        table.wrong(key, f'{value}, and the most is "{as_size(most)}"')
    return None


def _rate(table: Table, default: LogRate | None) -> LogRate | None:
    value = table.value("rate", str, f'{_RATE_EXPECTED}, or "off"')
    if value is None:
        return default
    if value == "off":
        return None
    if rate := _RATE.fullmatch(value):
        if int(rate[1]) <= LOG_RATE_MAXIMUM:
            return LogRate(int(rate[1]), _SECONDS[rate[2]])
        table.wrong("rate", f'rate is "{value}", and the most is {LOG_RATE_MAXIMUM}', 'for no bound: rate = "off"')
        return None
    almost = _ALMOST_RATE.fullmatch(value)
    hint = f'did you mean "{almost[1]}/{(almost[2] or "s").lower()}"?' if almost else ""
    table.wrong("rate", f'rate is {shown(value)}, expected {_RATE_EXPECTED}, or "off"', hint)
    return None


def check_logs(mistakes: Mistakes, system: System, machines: Sequence[MachineEntry]) -> None:
    """The machine that stores the records cannot wait until they are stored."""
    for machine in machines:
        if machine.name == system.syslog and machine.log.policy == "block":
            path = ("machines", machine.name)
            message = f"{machine.name} stores the records, and would wait for itself"
            mistakes.add((*path, "log", "policy"), path, f'log.policy is "block": {message}', 'write "spill" or "drop"')


def default_log(system: System, machine: str) -> LogPolicy:
    """The policy of a machine that says nothing of it. The one that stores the records never waits for itself."""
    if machine == system.syslog and system.log.policy == "block":
        return evolve(system.log, policy="spill")
    return system.log
