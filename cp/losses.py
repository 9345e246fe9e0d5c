"""What is said of records that are lost."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from retinue.cp.directory.model import LogPolicy, LogRate
from retinue.cp.directory.quantities import as_duration, as_size

Cause = Literal["rate", "buffer", "spill", "descriptor", "storage"]

# What a number may be that everybody can read.
MOST: Final = 2**53


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
            why = f"more of {machine} waited on the disk than may, or than it takes ({as_size(policy.spill)})"
        case "descriptor":
            why = f"the log descriptor of {machine} was full"
        case "storage":
            why = f"what {machine} wrote could not be stored"
    return f"-- {lost} lines lost: {why} --", {"lost": lost, "cause": cause}
