"""Landlock: which files a machine may open, whoever owns them. Standard library only.

See https://docs.kernel.org/userspace-api/landlock.html. What Landlock does not cover (chmod, utime, stat of a path,
datagrams to a named socket) is refused by system call instead, see :mod:`retinue.cp.host.seal.policy`.
"""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable

from retinue.cp.host import libc
from retinue.cp.host.errors import SealFailed

__all__ = ["CODE", "DISK", "PROGRAM", "REACH", "READ", "READ_WRITE", "RUN", "abi", "restrict"]

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # ABI 2
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5

BIND_TCP, CONNECT_TCP = 1 << 0, 1 << 1  # ABI 4
SCOPE_ABSTRACT_SOCKET, SCOPE_SIGNAL = 1 << 0, 1 << 1  # ABI 6

_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE
READ_WRITE = READ_FILE | WRITE_FILE
CODE = READ_FILE | READ_DIR
PROGRAM = CODE | EXECUTE
# Not EXECUTE (nothing a machine wrote is executed), not MAKE_CHAR or MAKE_BLOCK (devices), not MAKE_SOCK or MAKE_FIFO
# (a disk two machines share must not become a channel the topology does not show).
DISK = (
    READ_FILE | WRITE_FILE | TRUNCATE | READ_DIR | REFER
    | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM
)  # fmt: skip
RUN = DISK | MAKE_SOCK | MAKE_FIFO

NEWEST_ABI = 7
"""The newest ABI whose rights are known here; a kernel with a newer one understands this one. What 7 adds is how much
of what is refused goes to the audit log (by default what a machine's own program tried), nothing to refuse."""

REACH = "the user the system runs as must be able to get there without root's privileges"

_HINTS = {
    errno.ENOSYS: "needs a kernel of at least 5.13 that was built with CONFIG_SECURITY_LANDLOCK",
    errno.EOPNOTSUPP: "Landlock is built in but off: add landlock to the kernel's lsm= parameter",
}


def abi() -> int:
    """The Landlock ABI of the running kernel. :raises SealFailed: it has none."""
    try:
        return libc.syscall(_CREATE_RULESET, 0, 0, _CREATE_RULESET_VERSION)
    except OSError as error:
        number = error.errno or errno.ENOSYS
        raise SealFailed("files", "Landlock", number, _HINTS.get(number, "")) from error


def restrict(grants: Iterable[tuple[str, int]], *, network: bool) -> None:
    """From here on this process opens nothing but what ``grants`` (path, rights) allow. Needs no_new_privs.

    A path that does not exist is left out. A right that means nothing to a plain file is left out for a plain file.

    :param network: True leaves TCP alone; otherwise no port may be bound or connected to (ABI 4).
    :raises SealFailed: the kernel refused, or a path exists but cannot be reached.
    """
    version = min(abi(), NEWEST_ABI)
    handled = _ALL_BY_ABI[max(known for known in _ALL_BY_ABI if known <= version)]
    attribute = struct.pack("<Q", handled)
    if version >= 4:
        attribute += struct.pack("<Q", 0 if network else BIND_TCP | CONNECT_TCP)
    if version >= 6:
        attribute += struct.pack("<Q", SCOPE_ABSTRACT_SOCKET | SCOPE_SIGNAL)
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    try:
        ruleset = libc.syscall(_CREATE_RULESET, ctypes.addressof(buffer), len(attribute), 0)
    except OSError as error:
        raise SealFailed("files", "Landlock rule set", error.errno or 0) from error
    try:
        for path, rights in grants:
            _allow(ruleset, path, rights & handled)
        try:
            libc.syscall(_RESTRICT_SELF, ruleset, 0)
        except OSError as error:
            raise SealFailed("files", "Landlock restriction", error.errno or 0) from error
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise SealFailed("files", path, error.errno or 0, REACH) from error
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("<Qi", rights, descriptor)
        buffer = ctypes.create_string_buffer(rule, len(rule))
        libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.addressof(buffer), 0)
    except OSError as error:
        raise SealFailed("files", path, error.errno or 0) from error
    finally:
        os.close(descriptor)
