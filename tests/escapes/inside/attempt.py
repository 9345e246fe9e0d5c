"""The table of attempts, and how one of them is made. Standard library only: it also runs where nothing else is."""

import errno
import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

USER: Final = "as any user"
ROOT: Final = "as root"

# What a machine is refused with: by the filter, by Landlock, and where there is nothing to be found.
REFUSALS: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOENT})


class World(NamedTuple):
    """What an attempt may know of the host, as if the machine had been told by an accomplice outside."""

    profile: str
    """``program``, ``network``, ``exec``, or ``none`` where there is no seal."""
    disk: str
    """Its own disk."""
    other_disk: str
    """The disk of another machine, which has a file called ``mine``."""
    outside: str
    """A folder with a file called ``secret``, which everybody may read and write."""
    topology: str
    """The folder of the topology; the program lies in it."""
    state: str
    runtime: str
    home: str
    operator: str
    """The socket of the operator."""
    unix: str
    """A socket that everybody may connect to, in a folder that everybody may search."""
    datagram: str
    """The same for datagrams."""
    abstract: str
    """The name of a listening socket without a path."""
    port: int
    """A TCP and a UDP port of the loopback device."""
    cp: int
    nucleus: int
    other: int
    """Pids, as the host numbers them: of the control program, the nucleus and another machine."""
    victim: int
    """The pid of a process of the same user that has nothing to do with the system."""


Code = Callable[[World], object]
C = TypeVar("C", bound=Code)


class Attempt(NamedTuple):
    """One way out."""

    name: str
    """``category/what``."""
    code: Code
    """Raises OSError when it is refused, and returns something when it is not."""
    refusals: frozenset[int]
    """The errno that are a refusal; any other one comes from behind the seal."""
    allowed: Mapping[str, str]
    """The profiles that may do it if they can, and why."""
    needs: Mapping[str, str]
    """The layers without which it may be possible, and why: what the level ``full`` has and a lower one has not."""
    unsealed: str
    """Where it succeeds without a seal: USER, ROOT, or why that cannot be shown."""
    filtered: bool
    """It is the filter of system calls that refuses it, whatever other layers there are."""

    @property
    def category(self) -> str:
        """The part of the name before the first slash."""
        return self.name.partition("/")[0]


ATTEMPTS: Final[dict[str, Attempt]] = {}


def attempt(
    name: str,
    *,
    refusals: frozenset[int] | set[int] = REFUSALS,
    allowed: Mapping[str, str] | None = None,
    needs: Mapping[str, str] | None = None,
    unsealed: str = USER,
    filtered: bool = False,
) -> Callable[[C], C]:
    """Enter the function in the table."""

    def enter(code: C) -> C:
        assert name not in ATTEMPTS, name
        ATTEMPTS[name] = Attempt(name, code, frozenset(refusals), allowed or {}, needs or {}, unsealed, filtered)
        return code

    return enter


def perform(name: str, world: Mapping[str, Any]) -> dict[str, Any]:
    """Make an attempt. The answer has ``value`` if it succeeded, ``errno`` if it was refused, ``raised`` otherwise."""
    try:
        value = ATTEMPTS[name].code(World(**world))
    except OSError as error:
        return {"errno": error.errno or 0, "text": str(error)}
    except BaseException:
        return {"raised": traceback.format_exc()}
    return {"value": repr(value)[:500]}


def refused(number: int, text: str = "") -> OSError:
    """What an attempt raises that has found out by itself that it came to nothing."""
    return OSError(number, text or os.strerror(number))


def survivors(attempts: Mapping[str, Callable[[], object]], refusals: frozenset[int] = REFUSALS) -> dict[str, str]:
    """Several ways at once: those that were not refused, with what came of them. OSError if there is none."""
    found = {}
    number = errno.EPERM
    for name, code in attempts.items():
        try:
            found[name] = repr(code())[:100]
        except OSError as error:
            number = error.errno or 0
            if number not in refusals:
                found[name] = errno.errorcode.get(number, str(number))
    if not found:
        raise refused(number)
    return found
