"""What is said of records that are lost."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgpack

from retinue.cp.checking import OURS
from retinue.cp.directory.model import LogPolicy, LogRate
from retinue.cp.directory.quantities import as_duration, as_size

Cause = Literal["rate", "buffer", "spill", "descriptor", "storage", "end"]

# What a number may be that everybody can read.
MOST: Final = 2**53
# Machines named in the last word about losses.
NAMED: Final = 20
# How that begins, behind the reason of the end.
UNTOLD: Final = "-- at the end"

_OURS: Final = OURS.encode()


def rate_text(rate: LogRate) -> str:
    """A rate as one would write it in the file: ``1000/s``."""
    return f"{rate.most}/{as_duration(rate.within).removeprefix('1')}"


def gap(machine: str, cause: Cause, lost: int, policy: LogPolicy) -> tuple[str, Mapping[str, Any]]:
    """The text and the fields of the record that stands where records of a machine are missing."""
    lost = min(lost, MOST)
    match cause:
        case "rate":
            why = f"{machine} wrote more" + (f" than {rate_text(policy.rate)}" if policy.rate else "")
        case "buffer":
            why = f"more of {machine} waited to be stored than there is room for ({as_size(policy.buffer)})"
        case "spill":
            why = f"more of {machine} waited on the disk than may ({as_size(policy.spill)}) or can, or was spoilt there"
        case "descriptor":
            why = f"the log descriptor of {machine} was full"
        case "storage":
            why = f"what {machine} wrote could not be stored"
        case "end":
            why = f"the system ended before they were stored, and what waits of {machine} is not left on the disk"
    return f"-- {lost} lines lost: {why} --", {"lost": lost, "cause": cause}


def tells(data: bytes) -> bool:
    """Whether something in packed records may tell of lost ones."""
    return _OURS in data and b"lost" in data


def told_in(blob: bytes, first: int, after: int) -> int:
    """How many lost records are told by those records of a chunk that have higher numbers than ``after``."""
    if not tells(blob):
        return 0
    found = 0
    for number, (_, _, logger, _, fields) in enumerate(msgpack.unpackb(blob, strict_map_key=False), first):
        if number > after and logger == OURS and type(lost := fields.get("lost")) is int:
            found += max(0, min(lost, MOST))
    return min(found, MOST)


def untold_text(losses: Mapping[str, int]) -> str:
    """A line about records of which no record can say that they are lost: there is nothing to write it to."""
    most = sorted(losses.items(), key=lambda each: -each[1])
    names = ", ".join(f"{lost} of {machine}" for machine, lost in most[:NAMED])
    if len(most) > NAMED:
        names += f", {sum(lost for _, lost in most[NAMED:])} of others"
    return f"{UNTOLD} {sum(losses.values())} lines lost: {names}; the disk takes no record of it either --"


def untold_in(end: str) -> str:
    """That line, if the reason why a system has ended has one."""
    place = end.rfind(UNTOLD)
    return end[place:] if place >= 0 else ""
