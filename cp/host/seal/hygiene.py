"""The part of the seal every process should have: session, descriptors, limits, capabilities. Standard library only."""

import contextlib
import errno
import os
import resource
import signal
from collections.abc import Collection, Iterable
from typing import NamedTuple

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed

__all__ = [
    "CAP_NET_BIND_SERVICE",
    "IMAGE_MARGIN",
    "MAPPED_MARGIN",
    "NATIVE_MARGIN",
    "OPEN_FILES",
    "SIGNALS",
    "TASKS",
    "Image",
    "changed_signals",
    "drop_privileges",
    "empty_cores",
    "image",
    "keep_descriptors",
    "leave_session",
    "limit_counted",
    "set_limits",
]

OPEN_FILES = 4096
"""Descriptors of one machine: with fewer than the control program takes paths for (:mod:`retinue.cp.circuit`), one
machine could bring another down by opening paths to it."""

STACK = 8 * 1024 * 1024
"""Bytes of the main thread's stack, the usual default of every distribution."""

IMAGE_MARGIN = 4 * 1024 * 1024
"""Bytes of storage that must be left above the saved system's own, or the boot itself would run out in odd places."""

MAPPED_MARGIN = 64 * 1024 * 1024
"""Bytes of addresses above image and storage: for libraries that are loaded later, and what is mapped but not used."""

NATIVE_MARGIN = 1024 * 1024 * 1024
"""The same for a native program: its runtime may reserve addresses that it never uses (Go: some 600 MiB)."""

TASKS = 512
"""Threads and processes of one machine: twice the most threads of a wsgi machine."""

SIGNALS = 256
"""Signals of one machine that wait to be taken, and its timers (timer_create)."""

NO_CORE = 1
"""Bytes of a core file. With 0 the kernel would still give the memory to a program that core_pattern names (core(5));
1 is its word for neither that nor a file, which cannot be that short."""

_SYS_CLOSE_RANGE = 436
DESCRIPTOR_LAST = (1 << 32) - 1

CAP_SETPCAP = 8
CAP_NET_BIND_SERVICE = 10
CAP_LAST_POSSIBLE = 63


def changed_signals() -> list[int]:
    """The signals whose handling is not the default. Asked once in a saved system: to ask takes as long as to set."""
    # SIGPIPE and SIGXFSZ stay ignored as in every Python process: a broken pipe is an exception, not a death.
    candidates = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}
    # None: a handler that Python did not set, which belongs to the C library.
    return [number for number in candidates if signal.getsignal(number) not in (signal.SIG_DFL, None)]


def leave_session(name: str, signals: Iterable[int]) -> None:
    """Own session, ``signals`` handled by default, umask 077, working directory /."""
    # Not for a process that leads its group already (a boot that is repeated).
    with contextlib.suppress(PermissionError):
        os.setsid()
    os.umask(0o077)
    os.chdir("/")
    for number in signals:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    libc.set_process_name(name)
    # A saved system is not dumpable. A machine is: the CP looks after its memory from outside, and core files are off.
    libc.prctl(libc.PR_SET_DUMPABLE, 1)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (NO_CORE, NO_CORE))
    except ValueError:  # the hard limit is 0: what core_pattern names gets a dump, but see empty_cores
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def empty_cores() -> None:
    """No memory in a core dump of this process, nor of any that it will start or fork (core(5))."""
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w") as file:  # a kernel without ELF cores
        file.write("0")


def keep_descriptors(keep: Collection[int]) -> None:
    """Close everything but 0, 1, 2 and ``keep``; 0 becomes /dev/null."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    first = 3
    for kept in sorted({*keep, 0, 1, 2}):
        if kept >= first:
            _close_range(first, kept - 1)
            first = kept + 1
    _close_range(first, DESCRIPTOR_LAST)


def _close_range(first: int, last: int) -> None:
    if first <= last:
        libc.syscall(_SYS_CLOSE_RANGE, first, last, 0)


class Image(NamedTuple):
    """What a machine has from its saved system at its birth, in bytes."""

    data: int
    """Private writable memory, as RLIMIT_DATA counts it."""
    size: int
    """Addresses in use, as RLIMIT_AS counts them."""


def image(proc: int) -> Image:
    """Of the calling process; ``proc`` is the folder /proc."""
    found = {"VmData": 0, "VmSize": 0}
    with open("self/status", opener=lambda name, flags: os.open(name, flags, dir_fd=proc)) as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * 1024
    return Image(found["VmData"], found["VmSize"])


def set_limits(storage: int, file_size: int, segments: int, inherited: Image, *, native: bool) -> None:
    """Resource limits, soft and hard: the same, but for addresses.

    :param storage: bytes for RLIMIT_DATA, which counts private writable memory, the inherited image included. What it
        does not count (shared memory, mapped files) has a bound at :data:`MAPPED_MARGIN` more, by RLIMIT_AS.
    :param file_size: bytes that one file may have, a memfd too; 0 for ``storage``.
    :param segments: bytes that the hard limit of addresses is above the soft one. The machine's runtime raises the soft
        one for each segment that it is granted; for all else a machine has no more addresses than without segments.
    :param native: a program will be run that is not the image.
    :raises SealFailed: ``storage`` does not even hold the image.
    """
    if storage < inherited.data + IMAGE_MARGIN:
        least = -(-(inherited.data + IMAGE_MARGIN) >> 20)
        raise SealFailed("limits", f"storage of {storage} bytes", errno.ENOMEM, f'storage = "{least}M" is the least')
    for kind, wanted in (
        (resource.RLIMIT_DATA, storage),
        # SIGXFSZ is ignored in every Python process, so that this is EFBIG.
        (resource.RLIMIT_FSIZE, file_size or storage),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_STACK, STACK),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NICE, 0),
    ):
        _limit(kind, wanted)
    _limit(resource.RLIMIT_AS, inherited.size + storage + (NATIVE_MARGIN if native else MAPPED_MARGIN), segments)


def limit_counted(*, tasks: bool) -> None:
    """What the kernel counts for a user: in the user namespace, and as the user, that nobody else is in, if there are.

    :param tasks: no more than :data:`TASKS` as well; where others are the same user these would count.
    """
    _limit(resource.RLIMIT_SIGPENDING, SIGNALS)
    if tasks:
        _limit(resource.RLIMIT_NPROC, TASKS)


def _limit(kind: int, wanted: int, room: int = 0) -> None:
    """The soft limit, and a hard one that leaves ``room`` above it."""
    # Nobody may raise a hard limit without CAP_SYS_RESOURCE: where the site allows less, less it is.
    hard = resource.getrlimit(kind)[1]
    most = wanted + room if hard == resource.RLIM_INFINITY else min(wanted + room, hard)
    resource.setrlimit(kind, (min(wanted, most), most))


def drop_privileges(keep: int = 0) -> None:
    """no_new_privs, and no capability but those of the bit set ``keep`` that this process already has."""
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    with contextlib.suppress(OSError):  # before Linux 4.3 there were no ambient capabilities
        libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    have = libc.permitted_capabilities()
    if have >> CAP_SETPCAP & 1:
        for number in range(CAP_LAST_POSSIBLE + 1):
            try:
                libc.prctl(libc.PR_CAPBSET_DROP, number)
            except OSError:  # EINVAL: one past the last capability this kernel knows
                break
    libc.capset_nothing_but(have & keep)
    left = libc.permitted_capabilities() & ~keep
    if left:
        raise SealFailed("privileges", f"capabilities {left:#x}", errno.EPERM)
