"""What shares a packet: frames and their descriptors, as many as fit; and which descriptor is whose on arrival."""

from collections import deque

from retinue.pipes import bulk, wire
from retinue.pipes.errors import ProtocolViolation
from retinue.pipes.message import close_all
from retinue.pipes.session import Outgoing


def assemble(outbox: deque[Outgoing]) -> tuple[bytes, tuple[int, ...]]:
    """Take as many frames as one packet holds out of the outbox: its bytes and its descriptors, to be closed later.

    A frame too large for any packet goes into a memfd alone. OSError when the host has no room for that.
    """
    data, descriptors = outbox.popleft()
    if len(data) > wire.MAX_PACKET:
        try:
            return wire.encode([wire.Kind.BULK, len(data)]), (bulk.store(data), *descriptors)
        except OSError:
            close_all(descriptors)
            raise
    if not outbox:
        return data, descriptors
    parts, size = [data], len(data)
    while outbox:
        size += len(outbox[0].data)
        if size > wire.MAX_PACKET or len(descriptors) + len(outbox[0].descriptors) > wire.MAX_DESCRIPTORS:
            break
        data, more = outbox.popleft()
        parts.append(data)
        descriptors += more
    return b"".join(parts), descriptors


def claim(descriptors: list[int], count: int) -> tuple[int, ...]:
    """Take the descriptors of one frame out of those its packet brought. Raises :exc:`ProtocolViolation`."""
    if count == 0:
        return ()
    if len(descriptors) < count:
        raise ProtocolViolation("a frame claims more descriptors than came")
    claimed = tuple(descriptors[:count])
    del descriptors[:count]
    return claimed
