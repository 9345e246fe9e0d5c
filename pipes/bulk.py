"""A frame too large for a packet travels in a memfd: one copy into the kernel, no window of packets to fill.

The memfd is sealed by the sender and the seals are checked by the receiver, so that the bytes cannot change or vanish
between the check and the use (memfd_create(2), fcntl(2) F_ADD_SEALS).
"""

import fcntl
import os
from typing import Final

from retinue.pipes.errors import ProtocolViolation

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def store(data: bytes) -> int:
    """A sealed memfd that holds the data; the caller closes it. OSError when memory or descriptors are short."""
    descriptor = os.memfd_create("retinue-bulk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def fetch(untrusted_descriptor: int, size: int) -> bytes:
    """The bytes of a sealed memfd of exactly ``size`` bytes.

    Raises :exc:`ProtocolViolation`, MemoryError when there is no room for them; closes nothing.
    """
    try:
        seals = fcntl.fcntl(untrusted_descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise ProtocolViolation("a bulk descriptor that is not a memfd") from None
    if seals & _SEALS != _SEALS:
        raise ProtocolViolation("a bulk descriptor that is not sealed")
    if os.fstat(untrusted_descriptor).st_size != size:
        raise ProtocolViolation("a bulk descriptor of another size than announced")
    try:
        data = os.pread(untrusted_descriptor, size, 0)
    except OSError:  # opened for writing only
        data = b""
    if len(data) != size:
        raise ProtocolViolation("a bulk descriptor that cannot be read")
    return data
