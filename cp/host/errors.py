"""What can go wrong between the CP, the nucleus, a saved system and the seal. Standard library only."""

import os

__all__ = [
    "HostError",
    "HostLost",
    "LinkError",
    "LinkLimit",
    "PagingRefused",
    "PreloadFailed",
    "SavedSystemFailed",
    "SealFailed",
    "SpawnFailed",
]


class HostError(Exception):
    """Base of everything the host reports."""


class HostLost(HostError):
    """The nucleus closed its link: this process is about to be killed, nothing can be asked of the host any more."""

    def __init__(self) -> None:
        super().__init__("the nucleus is gone")


class LinkError(HostError):
    """The other end of a link spoke out of turn (malformed, unknown, or missing fields).

    :ivar reason: what was wrong with the message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"malformed message on a host link: {reason}")
        self.reason = reason


class LinkLimit(LinkError, ValueError):
    """A message is larger than the link allows, in one of its measures.

    :ivar what: the measure (``"bytes"``, ``"descriptors"``, ``"queue"``).
    :ivar value: what it was.
    :ivar limit: what it may be.
    """

    def __init__(self, what: str, value: int, limit: int) -> None:
        super().__init__(f"{value} {what}, the limit is {limit}")
        self.what = what
        self.value = value
        self.limit = limit


class SavedSystemFailed(HostError):
    """A saved system could not be made, or died.

    :ivar system: ``"sealed"`` or ``"network"``.
    :ivar text: what happened, for a person.
    """

    def __init__(self, system: str, text: str) -> None:
        super().__init__(f"the saved system for {system} machines failed: {text}")
        self.system = system
        self.text = text


class PagingRefused(HostError):
    """This host takes no page of a machine out of real storage from outside, or not of this one."""


class PreloadFailed(HostError):
    """A module of ``[system] preload`` is no good for a saved system.

    :ivar module: its name; empty if it is not known which.
    :ivar reason: what is wrong with it.
    """

    def __init__(self, module: str, reason: str) -> None:
        super().__init__(f"[system] preload: {f'cannot import {module!r}: ' if module else ''}{reason}")
        self.module = module
        self.reason = reason


class SpawnFailed(HostError):
    """No process could be made for a machine.

    :ivar machine: its name.
    :ivar step: what was being done (``"fork"``, ``"pid namespace"``, ...).
    :ivar errno: the number the kernel gave, or 0.
    :ivar hint: what would cure it, or empty.
    """

    def __init__(self, machine: str, step: str, errno: int, hint: str = "") -> None:
        reason = os.strerror(errno) if errno else "refused"
        super().__init__(f"cannot make a process for {machine}: {step}: {reason}" + (f" ({hint})" if hint else ""))
        self.machine = machine
        self.step = step
        self.errno = errno
        self.hint = hint


class SealFailed(OSError):
    """One step of the seal could not be done, so the machine must not run.

    :ivar step: which step (``"files"``, ``"calls"``, ...).
    :ivar object: what it was about: a path, a limit, a system call.
    :ivar errno: the number the kernel gave.
    :ivar hint: what would cure it, or empty.
    """

    def __init__(self, step: str, object: str, errno: int, hint: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.step = step
        self.object = object
        self.hint = hint

    def __str__(self) -> str:
        return f"seal: {self.step}: {self.object}: {self.strerror}" + (f" ({self.hint})" if self.hint else "")
